"""The `spikeloom` command: VERB [CONFIG] [key=value ...] into a call of the verb, errors into a line and an exit code.

Exit codes: 0 done; 1 a fault of the data (or the disk); 2 a fault of the command or its configuration; 75 a training that
was asked to stop (SIGUSR1, SIGTERM, Ctrl-C), has saved, and goes on when the same command is run again; 130 interrupted.
Of several ranks each but the first begins its lines with "[rank 3] ", and is silent on what another rank tells.
"""

import errno
import json
import os
import re
import sys
import traceback
from importlib.metadata import version

from data_prep.errors import ConfigError, MendableError
from launch.commands import VERBS
from launch.config import load, to_yaml
from launch.files import did_you_mean
from launch.local_ranks import rank_told, told_by_another
from launch.usage import overview, verb_usage
from launch.verb import Verb

OPTIONS = ("--dry-run", "--help", "--version")
FULL_WORDS = "No space left on device|File too large"  # of libraries that hide the number
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def main(argv: list[str] | None = None) -> int:
    """Runs one command line and gives its exit code; what a user cannot mend keeps its traceback."""
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except MendableError as error:
        return error.exit_code if told_by_another(error) else _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        line = _of_the_disk(error)
        if line is not None:
            return _fail(line, 1)
        if rank_told():
            return _say(traceback.format_exc(), 1)
        raise


def _run(argv: list[str]) -> int:
    options, words = _sorted_words(argv)
    if "--version" in options:
        print(f"spikeloom {version('spikeloom')}")
        return 0
    if not words:
        print(overview(VERBS))
        return 0 if "--help" in options else 2
    name, *words = words
    verb = _verb(name)
    if "--help" in options:
        print(verb_usage(name, verb, verb.schema()))
        return 0
    file, settings = verb.reads(words) if verb.reads else _file_and_settings(name, words, verb.many)
    if file is None and not settings and verb.needs:
        raise ConfigError(f"spikeloom {name}", f"{verb.needs} is missing", f"see spikeloom {name} --help")
    config = load(verb.schema(), file or verb.file, settings, positional=verb.positional)
    if "--dry-run" in options:
        print(to_yaml(config), end="", flush=True)
        print("\n".join(f"# {line}" for line in verb.plan(config)))
        return 0
    return verb.run(config)


def _sorted_words(argv: list[str]) -> tuple[set[str], list[str]]:
    options, words = set(), []
    for word in argv:
        word = "--help" if word == "-h" else word
        if word in OPTIONS:
            options.add(word)
        elif re.fullmatch(r"--?[A-Za-z].*", word):
            do = "write settings as key=value, without dashes" if "=" in word else did_you_mean(word, OPTIONS)
            raise ConfigError(word, "no such option", do)
        else:
            words.append(word)
    return options, words


def _verb(name: str) -> Verb:
    if name not in VERBS:
        raise ConfigError(f"spikeloom {name}", "no such command", did_you_mean(name, VERBS))
    return VERBS[name]


def _file_and_settings(name: str, words: list[str], many: bool) -> tuple[str | None, list[str]]:
    """The one word that is not key=value, if there is one, and the settings; of many words their list, as YAML."""
    settings = [word for word in words if re.match(r"[A-Za-z_][\w.-]*=", word)]
    others = [word for word in words if word not in settings]
    if many and others:
        return json.dumps(others, ensure_ascii=False), settings
    if len(others) > 1:
        raise ConfigError(f"spikeloom {name}", f"two files: {others[0]} and {others[1]}", "give one, then key=value")
    return (others[0] if others else None), settings


def _fail(line: str, code: int) -> int:
    return _say("spikeloom: " + " ".join(line.split()), code)


def _say(text: str, code: int) -> int:
    """Text on stderr, in one piece, so that the lines of several ranks do not mix; gives the code."""
    sys.stdout.flush()
    rank = rank_told()
    lines = (f"[rank {rank}] {line}" if rank else line for line in text.splitlines())
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
    return code


def _of_the_disk(error: BaseException | None) -> str | None:
    """One line for a full disk or a refused path, found in the error or in what caused it; None for anything else."""
    while error is not None:
        where = getattr(error, "filename", None) or "output"
        if getattr(error, "errno", None) in DISK_FULL or re.search(FULL_WORDS, str(error)):
            return f"{where}: the disk is full or the file too large for it; free some space and run the command again"
        if isinstance(error, PermissionError) or getattr(error, "errno", None) == errno.EROFS:
            return f"{where}: it may not be written or read ({error.strerror}); give a path of your own"
        error = error.__cause__ or error.__context__
    return None
