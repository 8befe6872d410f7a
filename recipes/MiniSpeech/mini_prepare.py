"""Make the MiniSpeech corpus: grammar sentences spoken by the espeak-ng synthesiser.

    python mini_prepare.py DATA_FOLDER          # 3.5 hours of speech, 0.4 GB, no network

The folder has LibriSpeech's layout, so LibriSpeech's own preparation reads it:
DATA_FOLDER/<split>/<speaker>/<chapter>/<speaker>-<chapter>-<utterance>.flac with a
.trans.txt per chapter. Beside the splits lie SPEAKERS.TXT (voice of each speaker) and
one <split>.ctm per split with the true start and duration of every word in seconds.
"""

import argparse
import ctypes
import hashlib
import json
import multiprocessing
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import soundfile
from grammar import sentences
from scipy.signal import resample_poly
from tqdm import tqdm

SAMPLE_RATE = 16000  # Hz, as LibriSpeech
SECONDS_PER_UTTERANCE = 3.3  # measured mean, turns --hours into a number of sentences
EVAL_SHARE = 14  # dev and test: one utterance each for 14 of train
MARKER = "mini_speech.json"
FORMAT = 1  # raise when the same plan would give other audio: old corpora are remade

# Every voice is one of espeak-ng's variants (voices/!v). No variant is in two splits,
# and none of dev and test has a near twin in train by its mean spectrum.
DEV_VOICES = "f5 Andrea linda m5 paul sandro Mario klatt3 Denis pedro".split()
TEST_VOICES = "f1 f3 Annie m2 pablo david edward victor quincy ed".split()
TRAIN_VOICES = [
    *"f2 f4 anika aunty belinda grandma steph steph2 steph3 anikaRobot".split(),
    *"m1 m3 m4 m6 m7 m8 adam Alex Andy announcer antonio benjamin croak".split(),
    *"Diogo edward2 fast Gene Gene2 grandpa Henrique Hugo iven iven3 iven4".split(),
    *"Jacky john klatt klatt2 klatt4 klatt5 klatt6 max Michael michel".split(),
    *"miguel Mike mike2 Mr_serious Nguyen Reed RicishayMax RicishayMax2".split(),
    *"RicishayMax3 rob robert robosoft robosoft2 robosoft3 robosoft4".split(),
    *"robosoft5 robosoft6 robosoft7 robosoft8 Storm Tweaky UniRobot".split(),
]
VOICES = {
    "train-clean-mini": TRAIN_VOICES,
    "dev-clean-mini": DEV_VOICES,
    "test-clean-mini": TEST_VOICES,
}
ACCENTS = ("en-us", "en-gb-x-rp", "en-us-nyc", "en", "en-gb-scotland")


@dataclass(frozen=True)
class Speaker:
    """One voice and how it is recorded.

    Arguments
    ---------
    id : int
        Speaker number; 1xxx train, 2xxx dev, 3xxx test.
    split : str
        Folder of the split.
    voice : str
        espeak-ng's accent+variant.
    pitch, pitch_range : int, 0 to 100
        espeak-ng's settings; 50 is the variant's own.
    rate : int
        Words per minute.
    level : float
        Loudness of the speech, dB relative to full scale (RMS).
    snr : float
        Speech to background noise, dB.
    """

    id: int
    split: str
    voice: str
    pitch: int
    pitch_range: int
    rate: int
    level: float
    snr: float
