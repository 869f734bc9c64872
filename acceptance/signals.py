"""Inputs for networks whose packages ship none: tones, voices, crops of photographs, clips, backbones of proteins."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

RATE = 16_000
"""Samples a second."""

# ---- sound


def tones(pitches: Tensor, length: int, seed: int = 0) -> Tensor:
    """Harmonic tones (n, length) of these pitches in Hz, with noise, each of mean 0 and standard deviation 1."""
    draws = torch.Generator().manual_seed(seed)
    harmonics = torch.arange(1, 9)
    time = torch.arange(length) / RATE
    phase = 2 * torch.pi * torch.rand(len(pitches), 8, 1, generator=draws)
    strength = torch.rand(len(pitches), 8, 1, generator=draws) / harmonics[:, None]
    waves = (strength * torch.sin(2 * torch.pi * pitches[:, None, None] * harmonics[:, None] * time + phase)).sum(1)
    waves += 0.05 * torch.randn(waves.shape, generator=draws)
    return (waves - waves.mean(1, keepdim=True)) / waves.std(1, keepdim=True)


def voices(speakers: int, utterances: int, frames: int, seed: int = 0) -> Tensor:
    """Mel spectrograms (speakers, utterances, frames, 40) of vowels, by a train of pulses through four resonances.

    A speaker has a pitch and a length of the throat of his own, an utterance its vowels.
    """
    from scipy.signal import lfilter

    draws = np.random.default_rng(seed)
    hop = RATE // 100
    found = np.empty((speakers, utterances, frames * hop))
    for speaker in range(speakers):
        pitch, throat = draws.uniform(80, 260), draws.uniform(0.85, 1.25)
        for utterance in range(utterances):
            bend = 1 + 0.1 * np.sin(2 * np.pi * np.arange(frames * hop) / RATE * draws.uniform(1, 4))
            pulses = np.diff(np.floor(np.cumsum(pitch * bend / RATE)), prepend=0.0)
            wave = pulses + 0.01 * draws.standard_normal(frames * hop)
            vowel = np.array([500.0, 1500.0, 2500.0, 3500.0]) * np.append(draws.uniform(0.6, 1.5, 2), [1, 1]) / throat
            for formant in vowel:
                radius, angle = np.exp(-np.pi * 90 / RATE), 2 * np.pi * formant / RATE
                wave = lfilter([1.0], [1.0, -2 * radius * np.cos(angle), radius**2], wave)
            found[speaker, utterance] = 0.03 * wave / wave.std()
    return mel(torch.from_numpy(found).float().flatten(0, 1)).view(speakers, utterances, -1, 40)[:, :, :frames]


def mel(waves: Tensor) -> Tensor:
    """Power spectrograms (n, frames, 40) on the mel scale, as librosa makes them: windows of 25 ms every 10 ms."""
    from transformers.audio_utils import mel_filter_bank

    bank = torch.from_numpy(mel_filter_bank(201, 40, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")).float()
    window = torch.hann_window(400)
    power = torch.stft(waves, 400, RATE // 100, window=window, return_complex=True).abs().square()
    return power.transpose(1, 2) @ bank


# ---- pictures


def photographs() -> tuple[Tensor, list[Tensor]]:
    """A portrait, which comes with matplotlib, and two pictures without people, which come with scikit-learn; RGB."""
    import matplotlib
    from PIL import Image
    from sklearn.datasets import load_sample_images

    portrait = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
    face = torch.from_numpy(np.array(Image.open(portrait).convert("RGB")))
    return face, [torch.from_numpy(np.array(image)) for image in load_sample_images().images]


def crops(picture: Tensor, centers: Tensor, sides: Tensor, size: int) -> Tensor:
    """Squares around these points (row, column), of these sides, scaled to (n, 3, size, size) in 0 to 255."""
    found = []
    for (row, column), side in zip(centers.tolist(), sides.tolist(), strict=True):
        top, left = int(row - side / 2), int(column - side / 2)
        square = picture[top : top + int(side), left : left + int(side)].permute(2, 0, 1)[None].float()
        found.append(torch.nn.functional.interpolate(square, (size, size), mode="bilinear", antialias=True))
    return torch.cat(found)


def clips(count: int, frames: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Videos (n, frames, 27, 48, 3) in uint8 of two moving scenes with a cut between, and the cut's frame (n,)."""
    draws = torch.Generator().manual_seed(seed)
    cuts = torch.randint(frames // 4, frames - frames // 4, (count,), generator=draws)
    coarse = torch.rand(count, 2, 3, 6, 10, generator=draws)
    wide = torch.nn.functional.interpolate(coarse.flatten(0, 1), (27, 48 + 2 * frames), mode="bicubic")
    wide = wide.view(count, 2, 3, 27, -1).clamp(0, 1)
    made = torch.empty(count, frames, 27, 48, 3, dtype=torch.uint8)
    for i in range(count):
        for t in range(frames):
            scene = wide[i, int(t > cuts[i])]
            made[i, t] = (255 * scene[:, :, 2 * t : 2 * t + 48]).permute(1, 2, 0).to(torch.uint8)
    return made, cuts


# ---- molecules


def backbones(count: int, residues: int, seed: int = 0) -> Tensor:
    """Coordinates (n, residues, 4, 3) of N, CA, C and O along chains of helices and strands, in angstrom."""
    draws = np.random.default_rng(seed)
    return torch.from_numpy(np.stack([_chain(residues, draws) for _ in range(count)])).float()


def _chain(residues: int, draws: np.random.Generator) -> np.ndarray:
    helix, strand = (-57.0, -47.0), (-120.0, 130.0)
    kinds = np.repeat(draws.integers(0, 2, residues // 6 + 1), 6)[:residues]
    angles = np.array([helix if kind else strand for kind in kinds]) + draws.normal(0, 8, (residues, 2))
    atoms = [np.array([0.0, 0.0, 0.0]), np.array([1.46, 0.0, 0.0]), np.array([2.0, 1.42, 0.0])]
    for i in range(1, residues):
        psi, phi = np.radians(angles[i - 1, 1]), np.radians(angles[i, 0])
        for bond, bend, turn in ((1.33, 116.6, psi), (1.46, 121.7, np.pi), (1.52, 111.0, phi)):
            atoms.append(_next_atom(*atoms[-3:], bond, np.radians(bend), turn))
    chain = np.array(atoms).reshape(residues, 3, 3)
    psis = np.radians(angles[:, 1])
    oxygens = [_next_atom(*chain[i], 1.23, np.radians(120.5), psis[i] + np.pi) for i in range(residues)]
    return np.concatenate([chain, np.array(oxygens)[:, None]], axis=1)


def _next_atom(a: np.ndarray, b: np.ndarray, c: np.ndarray, bond: float, bend: float, turn: float) -> np.ndarray:
    """The atom at this distance of c, angle with b and torsion with a."""
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    local = bond * np.array([-np.cos(bend), np.sin(bend) * np.cos(turn), np.sin(bend) * np.sin(turn)])
    return c + local[0] * along + local[1] * np.cross(normal, along) + local[2] * normal
