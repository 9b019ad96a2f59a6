"""From the arguments to two token stores with a report: made once, found again in an instant, never stale. No torch.

The report's lines are the same whether the store was made now or found. What stops a run (bad rows, too many rows
lost, duplicates) is decided after the rows are counted, so another choice of the user finds the work already done.
"""

from __future__ import annotations

import errno
import hashlib
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from swiftlet import heartbeat, log
from swiftlet.config.args import DataArgs
from swiftlet.config.filenames import BAD_ROWS
from swiftlet.data.cachekey import hash_files, mark_of, rows_hash, store_key
from swiftlet.data.draft import Draft, locked, read_seal, unwritable
from swiftlet.data.duplicates import count_duplicates, count_shared, mark_duplicates
from swiftlet.data.encode import Encoder
from swiftlet.data.fill import fill
from swiftlet.data.mapping import check_used
from swiftlet.data.report import DataReport, DatasetCount, lengths_of
from swiftlet.data.sources import files_of
from swiftlet.data.spec import DatasetSpec, parse_specs
from swiftlet.data.split import Split
from swiftlet.data.store import TokenStore, write_split
from swiftlet.data.template import Template
from swiftlet.data.verdict import check_bad, check_report
from swiftlet.errors import DataError, UsageError

TRAIN, VAL = "train", "val"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORTH_KEEPING = 10_000  # rows of a draft that --bad_rows skip goes on with: fewer are made in seconds
LARGE_BYTES = 10 * 2**30  # of all stores, from where on it is said: nothing removes them


@dataclass(frozen=True)
class Prepared:
    """What a run trains and evaluates on; `val` is None when nothing was asked for or nothing is left."""

    train: TokenStore
    val: TokenStore | None
    report: DataReport
    data_hash: str
    rows_hash: str = ""


@dataclass(frozen=True)
class _Request:
    """What the content of a store follows from."""

    args: DataArgs
    specs: tuple[DatasetSpec, ...]
    val_specs: tuple[DatasetSpec, ...]
    encoder: Encoder

    def key(self, hashes: dict[str, str]) -> str:
        """Return the name of the store."""
        args, encoder = self.args, self.encoder
        return store_key(
            datasets=[repr(spec) for spec in self.specs],
            val_datasets=[repr(spec) for spec in self.val_specs],
            files=hashes,
            columns=dict(encoder.columns),
            template=encoder.template.fingerprint,
            max_length=encoder.max_length,
            truncation=encoder.truncation,
            ratio=args.dataset_test_ratio,
            seed=args.dataset_seed,
            duplicates=args.check_dataset_strategy,
        )

    def files(self) -> list[Path]:
        """Return the files that the rows are read from, each once."""
        return list(dict.fromkeys(path for spec in (*self.specs, *self.val_specs) for path in files_of(spec)))

    def check_unchanged(self, hashes: dict[str, str], cache_dir: Path) -> None:
        """Check that the files are still those whose hashes name the store.

        Raises:
            DataError: a file was changed while it was read.
        """
        now = hash_files(self.files(), cache_dir)
        changed = [path for path in now.keys() | hashes.keys() if now.get(path) != hashes.get(path)]
        if changed:
            raise DataError(
                f"{', '.join(sorted(changed))} changed while being read", "start again once it is whole"
            )

    def empty_report(self) -> DataReport:
        """Return a report that knows the datasets."""
        counts = [DatasetCount(spec.text) for spec in self.specs]
        counts += [DatasetCount(spec.text, is_validation=True) for spec in self.val_specs]
        return DataReport(counts, max_length=self.encoder.max_length)


def prepare(
    args: DataArgs,
    template: Template,
    *,
    max_length: int,
    cache_dir: Path,
    bad_rows: Path | None,
    refused_rows: Path | None = None,
    claim: Callable[[], None] = lambda: None,
) -> Prepared:
    """Return the rows of --dataset and --val_dataset as tokens, split, checked and reported.

    Args:
        max_length: longest sample [tokens]; 0 or less for no limit.
        cache_dir: where stores are kept, each under the hash of what it follows from.
        bad_rows: the file that names the bad rows of a run.
        refused_rows: the file that names them where they may not be trained on; `bad_rows` when not given.
        claim: called when the rows may be trained on, before `bad_rows` is written: it makes room for it.

    Raises:
        DataError: the rows may not be trained on; the message says which and why.
        UsageError: a value of --dataset means nothing, one of --columns has no effect, or a folder cannot be written.
    """
    encoder = Encoder(template, dict(args.columns), max(0, max_length), args.truncation_strategy)
    request = _Request(args, parse_specs(args.dataset), parse_specs(args.val_dataset), encoder)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(cache_dir, error) from error
    hashes = hash_files(request.files(), cache_dir)
    folder = cache_dir / request.key(hashes)
    seal = read_seal(folder)
    try:
        report = (
            DataReport.from_dict(seal["report"])
            if seal
            else _make(request, folder, hashes, refused_rows or bad_rows)
        )
    except OSError as error:
        if error.errno in FULL:
            raise unwritable(cache_dir, error) from error
        raise
    _tell(report)
    _check(report, args, folder, refused_rows or bad_rows)
    claim()
    _put_bad_rows(report, folder, bad_rows)
    train, val = _open(folder, report, has_val=bool(args.val_dataset) or args.dataset_test_ratio > 0)
    joined = hashlib.sha256(f"{train.data_hash} {val.data_hash}".encode()).hexdigest()
    return Prepared(train, val if len(val) else None, report, joined, rows_hash(args, hashes))


def _open(folder: Path, report: DataReport, *, has_val: bool) -> tuple[TokenStore, TokenStore]:
    """Return the rows to train on and those held out, where some are to be."""
    train, val = TokenStore(folder, TRAIN), TokenStore(folder, VAL)
    if len(train) == 0:
        raise DataError(
            f"none of {report.num_rows} rows is left to train on",
            "hold out fewer with --dataset_test_ratio 0",
        )
    if len(val) == 0 and has_val:
        log.warning("no row is left for validation: there is no evaluation")
    return train, val


def _check(report: DataReport, args: DataArgs, folder: Path, refused_rows: Path | None) -> None:
    """Check that the rows may be trained on; where not, name the bad ones in `refused_rows`."""
    try:
        if report.num_rows:
            check_used(args.columns, {*report.columns})
        check_report(report, args)
    except (DataError, UsageError):
        _put_bad_rows(report, folder, refused_rows)
        raise


def _make(request: _Request, folder: Path, hashes: dict[str, str], refused_rows: Path | None) -> DataReport:
    with locked(folder.with_suffix(".lock"), _say_waiting):
        seal = read_seal(folder)
        if seal:
            return DataReport.from_dict(seal["report"])
        if folder.exists():
            log.warning(f"the token cache {folder} is damaged and is made again")
            shutil.rmtree(folder)
        marks = [mark_of(path) for path in hashes]
        draft = Draft(folder.with_suffix(".draft"), request.empty_report(), len(request.specs), marks)
        is_whole = fill(
            draft,
            [*request.specs, *request.val_specs],
            request.encoder,
            seed=request.args.dataset_seed,
            num_proc=request.args.preprocess_num_proc,
            stops=request.args.bad_rows == "error",
        )
        draft.close()
        if not is_whole:
            _tell(draft.report)
            _put_bad_rows(draft.report, draft.folder, refused_rows)
            if draft.num_rows < WORTH_KEEPING:  # once the rows are mended, nothing goes on with it
                shutil.rmtree(draft.folder)
            check_bad(draft.report, request.args, is_whole=False)
        request.check_unchanged(hashes, folder.parent)
        _finish(draft, request.args)
        draft.seal(folder, {"report": draft.report.to_dict()})
        _tell_size(folder.parent)
        return draft.report


def _tell_size(cache_dir: Path) -> None:
    """Say how much the stores of all runs take, where that is much."""
    total = 0
    for path in cache_dir.glob("*/*"):
        with suppress(FileNotFoundError):  # another run has just named its store
            total += path.stat().st_size
    if total >= LARGE_BYTES:
        log.info(
            f"tokenised rows of all runs take {total / 2**30:.1f} GiB in {cache_dir}: folders that no run under way "
            "reads may be removed, and are made again when their rows are asked for"
        )


def _say_waiting(is_first: bool) -> None:
    if is_first:
        log.info("another process tokenises the same rows; waiting for it")
    heartbeat.beat("tokenise")


def _finish(draft: Draft, args: DataArgs) -> None:
    """Find duplicates, split the rows, and complete the report."""
    folder, report = draft.folder, draft.report
    if args.check_dataset_strategy != "none":
        repeats = mark_duplicates(
            folder,
            num_dataset_rows=draft.num_dataset_rows,
            is_discarded=args.check_dataset_strategy == "discard",
        )
        count_duplicates(report, folder, repeats, is_discarded=args.check_dataset_strategy == "discard")
    ratio = 0.0 if args.val_dataset else args.dataset_test_ratio
    split = Split(folder, num_dataset_rows=draft.num_dataset_rows, ratio=ratio, seed=args.dataset_seed)
    write_split(folder, TRAIN, split.train())
    write_split(folder, VAL, split.validation() if args.val_dataset else split.held_out())
    count_shared(report, folder, f"{VAL}.index.bin")
    report.train, report.val = lengths_of(TokenStore(folder, TRAIN)), lengths_of(TokenStore(folder, VAL))


def _tell(report: DataReport) -> None:
    """Log the report: one of the processes of a run does."""
    if log.rank() != 0:
        return
    for line in report.lines():
        log.info(line)
    for line in report.warnings():
        log.warning(line)


def _put_bad_rows(report: DataReport, folder: Path, target: Path | None) -> None:
    """Put bad_rows.jsonl where the user looks for it, and remove one of an earlier attempt."""
    if log.rank() != 0 or target is None:
        return
    try:
        if report.num_bad:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / BAD_ROWS, target)
            log.info(f"bad rows: {target}")
        else:
            target.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(
            f"{target} cannot be written: {error.strerror}", "choose another --output_dir"
        ) from error
