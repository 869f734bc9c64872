// Charts in the colours of the page, light or dark.
const dark = matchMedia("(prefers-color-scheme: dark)");

function theme() {
  const ink = dark.matches ? "#e6e7e4" : "#1f2328", line = dark.matches ? "#3a3e42" : "#d6d8d4";
  return {
    background: "transparent", font: "system-ui, sans-serif", view: { stroke: line },
    axis: { labelColor: ink, titleColor: ink, gridColor: line, domainColor: line, tickColor: line, titleFontWeight: 400 },
    legend: { labelColor: ink, titleColor: ink },
    line: { color: ink }, rule: { color: ink },
  };
}

async function drawn(place, spec) {
  const found = await vegaEmbed(place, spec, { config: theme(), actions: { export: true, source: false, compiled: false, editor: false } });
  return found.view;
}
