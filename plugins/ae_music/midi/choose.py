"""Which track of a score holds the melody, and why.

The first of these rules that finds a track decides:

1. A name says so: melody, vocals, voice, or less surely lead, solo, soprano, right hand, in the
   languages that MIDI files are named in, unless the name says accompaniment too.
2. The words of a song are sung to it: most of its notes begin where a syllable does.
3. It is the most like a melody: one note at a time, high but within reach of a voice, in most of
   the bars, and moving by small steps. The weights are those of a conditional logit model over
   songs whose words tell the melody, pop songs with a named one, and chorales, rounded.

Where a rule finds several, the third decides between them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ae_music.grid import skyline
from ae_music.midi.score import Score, Track
from ae_toolkit import RunError, UsageError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Words of a name, in small letters without accents, that call a track the melody.
MELODY_WORDS = _words(
    "melody melodie melodia melodi melodija melo mel dallam メロ 주선율 мелодия мелодія"
)
VOICE_WORDS = _words(
    "vocal vocals vocalist vocale vocales vocaux vox voice voices voce voci voz voix vokal vokale "
    "vokaler wokal glos spiew chant chanteur chanteuse canto cantante cantus cantor singer singing "
    "sing gesang stimme singstimme gesangsstimme sanger sangerin sang zang zangstem laulu "
    "enek zpev вокал голос 보컬 노래 歌 うた"
)
LEAD_WORDS = _words(
    "lead leading solo soloist solist solista soprano sopran sopraan sopranos superius cantilena "
    "discant descant right rh droite rechte rechts destra derecha direita upper treble "
    "oberstimme 右手 リード ソロ 솔로 соло"
)

#: The same where words are not set apart.
MELODY_PARTS = ("旋律", "メロディ", "主メロ", "멜로디")
VOICE_PARTS = (
    "主唱", "人声", "人聲", "歌声", "歌聲", "演唱", "領唱", "领唱", "ボーカル", "ヴォーカル",
)  # fmt: skip

#: Words beside them that make a track the accompaniment after all.
BACKING_WORDS = _words(
    "back backing backings backup background backgrounds backvocals bg bgv bv bvs choeur choeurs "
    "chor chore choir choirs chorus choral coro coros cori kor koor ooh oohs oo oos aah aahs ah "
    "ahs harmony harmonies harm harmonie harmonia harmoni second seconda segunda zweite deuxieme "
    "2nd counter countermelody contra contracanto contre kontra obbligato accomp accompaniment "
    "acc acomp accompagnement accompagnamento begleitung comp comping rhythm rythm chord chords "
    "accords akkorde acordes accordi pad pads bass basso bajo baixo basse drum drums percussion "
    "perc kit sheet fx sfx effect effects echo delay double dbl left lh"
)
BACKING_PARTS = (
    "副旋律", "対旋律", "对旋律", "對旋律", "裏メロ", "サブメロ", "和声", "和聲", "伴奏", "伴唱",
    "コーラス", "ハモ",
)  # fmt: skip
SYNTH_WORDS = _words("synth syn synthesizer space air pad")  # of a patch called voice
GUITAR_WORDS = _words("guitar guitars gtr gt guit gitarre guitare guitarra chitarra")
MAX_NAME_WORDS = 5  #: more than that are the title of a piece
GENERAL_MIDI_LEAD = re.compile(r"\blead \d+ ?\(")  #: of a synthesizer, whatever it plays

MIN_SUNG = 0.6  #: of notes that begin with a syllable, and syllables with a note
SUNG_WITHIN_STEPS = 0.6
BAR_STEPS = 16  #: in which coverage is counted

#: Of the bars of the track that plays in most, by how surely the name calls it the melody.
MIN_COVERAGE = {2: 0.1, 1: 0.4}
MIN_NOTES = 0.1  #: of the notes of the fullest track
FIRST_EFFECT = 112  #: of General MIDI's programs: percussion, then sounds
VOCAL_RANGE = 60, 76  #: of a melody's median pitch

#: What a melody is measured by, in semitones of its median pitch.
POLYPHONY_WEIGHT, COVERAGE_WEIGHT, INTERVAL_WEIGHT, RANGE_WEIGHT = 60.0, 40.0, 4.0, 3.0
MAX_INTERVAL = 12  #: semitones that a leap counts at most


class Choice(NamedTuple):
    """The track that holds the melody, and why, in words that go on from "it is"."""

    track: Track
    reason: str


class Traits(NamedTuple):
    """What a track is like.

    Attributes:
        median: pitch, of the highest notes.
        polyphony: share of the notes that begin while another sounds, octaves apart from.
        interval: mean semitones from one of the highest notes to the next.
        num_bars: in which it begins a note.
        num_notes: one at a time.
    """

    median: float
    polyphony: float
    interval: float
    num_bars: int
    num_notes: int


def choose_track(score: Score, wanted: str | None, *, where: str = "") -> Choice:
    """The track that holds the melody.

    Args:
        score: of a file or an object.
        wanted: a track's number from 1, its name or a part of it, or `all`; None: by the rules.
        where: begins every sentence, such as `tune.mid: `.

    Raises:
        UsageError: there is no such track.
        RunError: there are drums only.
    """
    pitched = [track for track in score.tracks if not track.is_drum]
    if not pitched:
        raise RunError(f"{where}no melody was found, there are drums only")
    if wanted is None:
        return _by_rule(score, pitched)
    if wanted == "all":
        return Choice(_merged(pitched), "all of them, as asked for")
    if wanted.isdecimal():
        named = [t for i, t in enumerate(score.tracks, start=1) if str(i) == wanted.lstrip("0")]
    else:
        named = [t for t in score.tracks if wanted and wanted.lower() in t.name.lower()]
    if not named:
        names = ", ".join(f"{i} {t.name!r}" for i, t in enumerate(score.tracks[:12], start=1))
        raise UsageError(f"{where}there is no track {wanted!r}: choose from {names}, or all")
    track = next((track for track in named if not track.is_drum), None)
    if track is None:
        raise UsageError(f"{where}track {wanted!r} is a drum track, which has no melody")
    return Choice(track, "the one that was asked for")


def rank_of_name(name: str) -> int:
    """How surely a name calls its track the melody: 2, 1 (lead, solo, right hand) or 0."""
    text = unicodedata.normalize("NFKD", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)).casefold()
    # Accents go, but kana keep the marks that make one out of another.
    text = unicodedata.normalize("NFKC", re.sub("[\u0300-\u036f]", "", text))
    text = re.sub(r"\b([a-z])\.([a-z])\b", r"\1\2", text)  # r.h.
    words = {*re.findall(r"2nd|[^\W\d_]+", text)}
    backing = words & BACKING_WORDS or any(part in text for part in BACKING_PARTS)
    if backing or len(words) > MAX_NAME_WORDS or GENERAL_MIDI_LEAD.search(text):
        return 0
    if words & MELODY_WORDS or any(part in text for part in MELODY_PARTS):
        return 2
    if words & SYNTH_WORDS:
        return 0
    if words & VOICE_WORDS or any(part in text for part in VOICE_PARTS):
        return 2
    return int(bool(words & LEAD_WORDS) and not words & GUITAR_WORDS)


def _by_rule(score: Score, pitched: Sequence[Track]) -> Choice:
    if len(pitched) == 1:
        return Choice(pitched[0], "the only one that is no drums")
    traits = [traits_of(track) for track in pitched]
    most_bars = max(each.num_bars for each in traits)

    def best(of: Sequence[int]) -> int:
        return max(of, key=lambda i: _likeness(traits[i], most_bars))

    same = len({track.name for track in pitched}) == 1  # that of the piece
    ranks = [0 if same else rank_of_name(track.name) for track in pitched]
    for rank, least in MIN_COVERAGE.items():
        named = [
            i for i, each in enumerate(traits)
            if ranks[i] == rank and each.num_bars >= least * most_bars
        ]  # fmt: skip
        if named:
            i = best(named)
            among = f", the most like a melody of {len(named)} such" if len(named) > 1 else ""
            return Choice(pitched[i], f"named {pitched[i].name!r}{among}")
    sung = [sung_to(track, score.words) for track in pitched]
    if max(sung) >= MIN_SUNG:
        i = best([i for i, share in enumerate(sung) if share >= max(sung) - 0.05])
        return Choice(pitched[i], "the one whose notes begin where the words of the song do")
    fullest = max(each.num_notes for each in traits)
    usual = [
        i
        for i, each in enumerate(traits)
        if pitched[i].program < FIRST_EFFECT and each.num_notes >= MIN_NOTES * fullest
    ]
    i = best(usual or range(len(pitched)))
    alone, bars = 1 - traits[i].polyphony, traits[i].num_bars / most_bars
    return Choice(
        pitched[i],
        f"the most like a melody of {len(pitched)} tracks: {alone:.0%} of its notes begin alone, "
        f"it plays in {bars:.0%} as many bars as the one that plays in most, and it moves by "
        f"{traits[i].interval:.1f} semitones",
    )


def traits_of(track: Track) -> Traits:
    """Measures a track."""
    notes = track.on_grid()
    top = skyline(notes)
    steps = np.abs(np.diff(top.pitch))
    # Of a note and its octave, one; then those that begin before what began earlier has ended.
    _, different = np.unique(notes.start * 12 + notes.pitch % 12, return_index=True)
    start, end = notes.start[different], notes.end[different]
    crowded = start[1:] < np.maximum.accumulate(end)[:-1]
    return Traits(
        float(np.median(top.pitch)),
        float(crowded.mean()) if len(crowded) else 0.0,
        float(np.minimum(steps, MAX_INTERVAL).mean()) if len(steps) else float(MAX_INTERVAL),
        len(np.unique(notes.start // BAR_STEPS)),
        len(top.start),
    )


def _likeness(traits: Traits, most_bars: int) -> float:
    """How much a track is like a melody, in semitones of its median pitch."""
    low, high = VOCAL_RANGE
    return (
        traits.median
        - POLYPHONY_WEIGHT * traits.polyphony
        + COVERAGE_WEIGHT * traits.num_bars / most_bars
        - INTERVAL_WEIGHT * traits.interval
        - RANGE_WEIGHT * max(low - traits.median, traits.median - high, 0)
    )


def sung_to(track: Track, words: NDArray[np.float64]) -> float:
    """How well onsets and the moments of words agree: the F-measure, 0 to 1."""
    onsets = np.unique(track.start)
    if len(words) < 2 or len(onsets) < 2:
        return 0.0

    def near(some: NDArray[np.float64], others: NDArray[np.float64]) -> float:
        after = np.searchsorted(others, some).clip(1, len(others) - 1)
        gap = np.minimum(np.abs(some - others[after - 1]), np.abs(others[after] - some))
        return float((gap <= SUNG_WITHIN_STEPS).mean())

    precision, recall = near(onsets, words), near(words, onsets)
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _merged(tracks: Sequence[Track]) -> Track:
    columns = [
        np.concatenate([getattr(track, name) for track in tracks])
        for name in ("start", "end", "pitch", "velocity")
    ]
    order = np.argsort(columns[0], kind="stable")
    return Track("all", tracks[0].program, False, *(column[order] for column in columns))
