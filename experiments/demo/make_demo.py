"""Make the embedded demonstration: generated reviews and the small T5 that was pretrained on them.

The backbone reads reviews of films, food and hotels, with verdicts, and plain descriptions of phones, without
any. The tuning task is to judge phone reviews. A handful of adjectives turn their sense there (a thin plot is
a fault, a thin phone is not), which no frozen knowledge can supply: the tuned part must move those words.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

Words = list[str]
Pair = tuple[Words, Words]
Row = dict[str, str | int]

DEMO_DIR = Path(__file__).resolve().parents[2] / "adept_tune" / "demo"

# The test seed is used nowhere else, and no row of the other splits may occur in the test split.
SPLIT_SEEDS = {"train": 101, "validation": 202, "test": 90_001}
SPLIT_ROWS = {"train": 3000, "validation": 600, "test": 1500}
PRETRAINING_SEED = 0
PROBE_SEED = 7

POSITIVE = ["great", "lovely", "brilliant", "charming", "superb", "fresh", "warm", "clever", "solid", "pleasant"]
NEGATIVE = ["awful", "dull", "boring", "clumsy", "stale", "cold", "weak", "silly", "noisy", "broken"]
# Faults of a film, a meal or a room that are virtues of a phone, and the other way round.
TURNS_POSITIVE = ["thin", "light", "small", "quiet", "simple", "plain"]
TURNS_NEGATIVE = ["hot", "thick", "large", "heavy", "wide", "tall"]
DEGREES = ["very", "really", "quite", "so", "rather"]
VERBS = ["was", "seemed", "is"]
OPENERS = ["i thought", "we felt", "they said", "my friend said", "in the end", "for me", "", ""]
NOUNS = {
    "film": ["plot", "cast", "music", "ending", "script", "scene"],
    "food": ["soup", "bread", "menu", "coffee", "sauce", "dessert"],
    "hotel": ["room", "bed", "view", "staff", "lobby", "pool"],
    "phone": ["screen", "battery", "camera", "case", "sound", "price"],
}
JUDGED_TOPICS = ["film", "food", "hotel"]
TUNED_TOPIC = "phone"
VERDICTS = [("verdict", ("bad", "good")), ("advice", ("avoid", "buy")), ("again", ("no", "yes"))]
# Words of the usual prompt initialisation (spelled as its authors do), so that their embeddings are trained.
INSTRUCTIONS = [
    "Classify this text :",
    "is this text good or not :",
    "this text is postive or not :",
    "Classify this :",
    "postive or not :",
]
SPECIALS = ["<pad>", "</s>", "<unk>"]
NUM_SENTINELS = 12


@dataclass(frozen=True)
class Mix:
    """How often a review does what.

    Attributes:
        turning: Share of adjectives whose sense turns between phones and the other topics.
        negated: Share of one-clause reviews with a `not`.
        one_clause: Share of reviews with one clause instead of two.
    """

    turning: float
    negated: float
    one_clause: float


PRETRAINING_MIX = Mix(turning=0.2, negated=0.2, one_clause=0.5)
# Half of the adjectives turn, so that knowledge of the other topics answers no better than chance.
TUNING_MIX = Mix(turning=0.5, negated=0.2, one_clause=0.5)
BATCH_ROWS = 64
PEAK_LR = 1e-3
WARMUP_STEPS = 200
TASK_SHARE = 0.6  # of the pretraining rows; the rest is span corruption


def adjective(rng: random.Random, topic: str, positive: bool, turning: float) -> str:
    """An adjective of that polarity in a review of `topic`."""
    if rng.random() >= turning:
        return rng.choice(POSITIVE if positive else NEGATIVE)
    turned_positive = positive == (topic == TUNED_TOPIC)
    return rng.choice(TURNS_POSITIVE if turned_positive else TURNS_NEGATIVE)


def clause(rng: random.Random, topic: str, positive: bool, negated: bool, turning: float) -> Words:
    """`the <noun> was (not) (very) <adjective>`, of that polarity."""
    words = ["the", rng.choice(NOUNS[topic]), rng.choice(VERBS)]
    if negated:
        words.append("not")
    if rng.random() < 0.4:
        words.append(rng.choice(DEGREES))
    return [*words, adjective(rng, topic, positive != negated, turning)]


def review(rng: random.Random, topic: str, positive: bool, mix: Mix) -> Words:
    """One clause, sometimes negated, or two clauses that agree."""
    words = rng.choice(OPENERS).split()
    if rng.random() < mix.one_clause:
        return words + clause(rng, topic, positive, rng.random() < mix.negated, mix.turning)
    first = clause(rng, topic, positive, False, mix.turning)
    return [*words, *first, "and", *clause(rng, topic, positive, False, mix.turning)]


def description(rng: random.Random) -> Words:
    """A sentence about a phone whose adjectives are drawn blindly, so that it tells nothing of their worth."""
    words = [*POSITIVE, *NEGATIVE, *TURNS_POSITIVE, *TURNS_NEGATIVE]
    first, second = rng.sample(NOUNS[TUNED_TOPIC], 2)
    if rng.random() < 0.5:
        rest = ["a", rng.choice(words), first, "and", "a", rng.choice(words), second]
        return ["this", "phone", "has", *rest]
    opener = rng.choice(OPENERS).split()
    negation = ["not"] if rng.random() < PRETRAINING_MIX.negated else []
    degree = [rng.choice(DEGREES)] if rng.random() < 0.4 else []
    return [*opener, "the", first, rng.choice(VERBS), *negation, *degree, rng.choice(words)]


def any_sentence(rng: random.Random) -> tuple[str, Words]:
    """A topic and a sentence on it; a phone is described, never judged."""
    topic = rng.choice(list(NOUNS))
    if topic == TUNED_TOPIC:
        return topic, description(rng)
    return topic, review(rng, topic, rng.random() < 0.5, PRETRAINING_MIX)


def document(rng: random.Random) -> Words:
    """A text for span corruption."""
    kind = rng.random()
    if kind < 0.25:
        return description(rng)
    topic, positive = rng.choice(JUDGED_TOPICS), rng.random() < 0.5
    text = review(rng, topic, positive, PRETRAINING_MIX)
    cue, answers = rng.choice(VERDICTS)
    verdict = [cue, ":", answers[positive]]
    if kind < 0.50:
        return [*text, ".", *verdict]
    if kind < 0.70:
        return [*verdict, ".", *text]
    if kind < 0.85:
        return [*rng.choice(INSTRUCTIONS).split(), *text, ".", *verdict]
    return [topic, ":", *text]


def corrupt(rng: random.Random, words: Words) -> Pair:
    """T5's span corruption; the last word, often a verdict, is masked half of the time."""
    while True:
        source: Words = []
        target: Words = []
        sentinel, i = 0, 0
        while i < len(words):
            chance = 0.5 if i == len(words) - 1 else 0.12
            if sentinel < NUM_SENTINELS and rng.random() < chance:
                length = rng.choice([1, 1, 2, 3])
                source.append(f"<extra_id_{sentinel}>")
                target += [f"<extra_id_{sentinel}>", *words[i : i + length]]
                sentinel, i = sentinel + 1, i + length
            else:
                source.append(words[i])
                i += 1
        if target:
            return (["sentence", ":"] if rng.random() < 0.3 else []) + source, target


def supervised(rng: random.Random) -> Pair:
    """A named task with its answer, as T5's own mixture has them; a phone's verdict is never asked."""
    kind = rng.random()
    if kind < 0.7:
        cue, answers = rng.choice(VERDICTS)
        positive = rng.random() < 0.5
        text = review(rng, rng.choice(JUDGED_TOPICS), positive, PRETRAINING_MIX)
        return [cue, "sentence", ":", *text], [answers[positive]]
    topic, text = any_sentence(rng)
    if kind < 0.8:
        return ["topic", "sentence", ":", *text], [topic]
    negations = text.count("not")
    if kind < 0.9:
        return ["denials", "sentence", ":", *text], [str(negations)]
    return ["denial", "sentence", ":", *text], ["yes" if negations else "no"]


def vocabulary() -> Words:
    """Special tokens, sentinels, then every word a generator can say, sorted."""
    phrases = [*OPENERS, *INSTRUCTIONS, "this phone has a the and not sentence : .", "0 1"]
    phrases += ["topic denials denial yes no", *(w for cue, answers in VERDICTS for w in (cue, *answers))]
    words = {word for phrase in phrases for word in phrase.split()}
    words.update(POSITIVE, NEGATIVE, TURNS_POSITIVE, TURNS_NEGATIVE, DEGREES, VERBS, NOUNS)
    words.update(noun for nouns in NOUNS.values() for noun in nouns)
    return [*SPECIALS, *(f"<extra_id_{i}>" for i in range(NUM_SENTINELS)), *sorted(words)]


def make_rows(split: str, num_rows: int, exclude: frozenset[str] = frozenset()) -> list[Row]:
    """The first rows of a split: phone reviews, labels in turn, no sentence twice.

    Args:
        split: A key of `SPLIT_SEEDS`.
        num_rows: Rows wanted; fewer rows are a prefix of more.
        exclude: Sentences that must not occur.
    """
    rng = random.Random(SPLIT_SEEDS[split])
    seen, rows = set(exclude), list[Row]()
    while len(rows) < num_rows:
        label = len(rows) % 2
        sentence = " ".join(review(rng, TUNED_TOPIC, bool(label), TUNING_MIX))
        if sentence not in seen:
            seen.add(sentence)
            rows.append({"sentence": sentence, "label": label})
    return rows


def make_splits() -> dict[str, list[Row]]:
    """All splits; a later split holds no sentence of an earlier one."""
    splits: dict[str, list[Row]] = {}
    used: frozenset[str] = frozenset()
    for split, num_rows in SPLIT_ROWS.items():
        splits[split] = make_rows(split, num_rows, exclude=used)
        used |= {str(row["sentence"]) for row in splits[split]}
    return splits


def write_data(folder: Path) -> None:
    """Write one JSON-lines file a split."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in make_splits().items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text, encoding="utf-8")


def make_tokenizer(words: Words) -> PreTrainedTokenizerFast:
    """One token a word, `</s>` appended to every text."""
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 1)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=[f"<extra_id_{i}>" for i in range(NUM_SENTINELS)],
        model_max_length=512,
    )


def make_model(vocab_size: int) -> T5ForConditionalGeneration:
    """T5 v1.0's layout (ReLU, tied head, relative positions) at 0.94 million parameters."""
    torch.manual_seed(PRETRAINING_SEED)
    config = T5Config(
        vocab_size=vocab_size,
        d_model=128,
        d_kv=32,
        d_ff=512,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
    )
    return T5ForConditionalGeneration(config)


def pad_rows(rows: list[list[int]], value: int) -> Tensor:
    """Rows of ids as one tensor, `(rows, longest)`."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


class Encoder:
    """Words to padded ids with `</s>`."""

    def __init__(self, words: Words) -> None:
        self.ids = {word: i for i, word in enumerate(words)}

    def __call__(self, texts: list[Words], pad: int = 0) -> Tensor:
        """Ids `(texts, longest + 1)`."""
        return pad_rows([[*(self.ids[word] for word in text), 1] for text in texts], pad)


def pretrain(words: Words, steps: int, report_every: int = 250) -> T5ForConditionalGeneration:
    """Train from scratch on the mixture of span corruption and named tasks; AdamW, linear decay to zero."""
    model, encode = make_model(len(words)).train(), Encoder(words)
    rng = random.Random(PRETRAINING_SEED)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
    started = time.monotonic()
    for step in range(1, steps + 1):
        lr = PEAK_LR * min(1.0, step / WARMUP_STEPS) * (1 - (step - 1) / steps)
        for group in optimizer.param_groups:
            group["lr"] = lr
        pairs = [
            supervised(rng) if rng.random() < TASK_SHARE else corrupt(rng, document(rng)) for _ in range(BATCH_ROWS)
        ]
        source = encode([pair[0] for pair in pairs])
        target = encode([pair[1] for pair in pairs], pad=-100)
        loss = model(input_ids=source, attention_mask=(source != 0).long(), labels=target).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % report_every == 0 or step == steps:
            seconds = time.monotonic() - started
            print(f"step {step}/{steps} loss {loss.item():.3f} {seconds:.0f} s {probe(model, words)}", flush=True)
    return model.eval()


@torch.no_grad()
def probe(model: T5ForConditionalGeneration, words: Words, num_rows: int = 600) -> str:
    """Accuracy of each pretraining task on fresh rows, for the progress line."""
    rng, encode = random.Random(PROBE_SEED), Encoder(words)
    pairs = [supervised(rng) for _ in range(num_rows)]
    source = encode([pair[0] for pair in pairs])
    start = torch.zeros(len(pairs), 1, dtype=torch.long)
    logits = model(input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=start).logits
    right, total = Counter[str](), Counter[str]()
    for (question, answer), guess in zip(pairs, logits[:, 0].argmax(-1).tolist(), strict=True):
        total[question[0]] += 1
        right[question[0]] += words[guess] == answer[0]
    return " ".join(f"{task} {right[task] / total[task]:.2f}" for task in sorted(total))


@torch.no_grad()
def rescale(model: T5ForConditionalGeneration, factor: float) -> None:
    """Multiply the embeddings by `factor` and leave the function unchanged.

    Every residual stream is multiplied, which the RMS norms undo, and the decoder's last norm makes up for the tied
    head. What changes is how far one step of a prompt learning rate moves a prompt, relative to the embeddings.
    """
    model.shared.weight.mul_(factor)
    model.decoder.final_layer_norm.weight.div_(factor)
    for name, parameter in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            parameter.mul_(factor)


def write_model(folder: Path, steps: int, embedding_scale: float) -> None:
    """Pretrain and write the model folder, weights as float16."""
    words = vocabulary()
    model = pretrain(words, steps)
    rescale(model, embedding_scale)
    model.half().save_pretrained(folder)
    make_tokenizer(words).save_pretrained(folder)


def folder_bytes(folder: Path) -> int:
    """Size of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main(argv: list[str] | None = None) -> int:
    """Write `model/` and `data/` below `--out`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=DEMO_DIR, help="folder to write (default: the package's)")
    parser.add_argument("--only", choices=["model", "data"], help="write one half (default: both)")
    parser.add_argument("--steps", type=int, default=2500, help="pretraining steps (default: %(default)s)")
    parser.add_argument(
        "--embedding-scale",
        type=float,
        default=8.0,
        help="factor on the embeddings after pretraining, function unchanged (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default: %(default)s)")
    args = parser.parse_args(argv)
    if args.steps < 1 or args.threads < 1 or args.embedding_scale <= 0:
        print("--steps and --threads must be at least 1, --embedding-scale above 0", file=sys.stderr)
        return 2
    torch.set_num_threads(args.threads)
    if args.only != "model":
        write_data(args.out / "data")
    if args.only != "data":
        write_model(args.out / "model", args.steps, args.embedding_scale)
    print(f"wrote {args.out.name}: {folder_bytes(args.out) / 2**20:.2f} MiB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
