// The charts of a page on which nothing moves.
const charts = JSON.parse(document.getElementById("data").textContent);
const views = {};

async function draw() {
  for (const [name, spec] of Object.entries(charts)) {
    views[name]?.finalize();
    views[name] = await drawn(document.getElementById(`chart-${name}`), spec);
  }
  document.body.dataset.drawn = "yes";
}

dark.addEventListener("change", draw);
draw();
