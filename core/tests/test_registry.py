"""Words, URLs and classes to runners, tried on distributions that each test installs for itself."""

from __future__ import annotations

import importlib.metadata
import pickle
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, ClassVar, Protocol

import pytest

from turnout import _installed, _options, registry
from turnout.errors import MissingRunnerLibraryError, RunnerError, RunnerOptionError, UnknownRunnerError
from turnout.registry import Library, known, resolve
from turnout.runner import Batch, Host, TaskRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MODULE = """
from turnout.runner import TaskRunner

class Plain(TaskRunner):
    def start(self, host): ...
    def slots(self): return 1
    def submit(self, batch): ...
    def stop(self): ...

class Tram(Plain):
    def __init__(self, cars=1, line="red", *, spare=None):
        if cars == 0:
            raise ValueError("a tram has a car")
        self.cars, self.line, self.spare = cars, line, spare

    @classmethod
    def from_url(cls, url):
        if "refused" in url:
            raise OSError("no such stop")
        return cls(line=url)

class Loose(Plain):
    def __init__(self, size, **others):
        self.size, self.others = size, others

class Lazy(Plain):
    def __init__(self):
        import certainly_missing_library.part

not_a_class = Tram()
"""


class Install(Protocol):
    def __call__(
        self, name: str, files: dict[str, str], entry_points: str, metadata: str = "", version: str = "1.0"
    ) -> Path: ...


class Local(TaskRunner):
    started: ClassVar[list[object]] = []

    def __init__(self, size: int = 1) -> None:
        self.size = size

    def start(self, host: Host) -> None:
        self.started.append(host)

    def slots(self) -> int:
        return self.size

    def submit(self, batch: Batch) -> object:
        return None

    def stop(self) -> None:
        pass


class Demanding(Local):
    def __init__(self, address: str, port: int = 80) -> None:
        super().__init__(port)
        self.address = address


def forget() -> None:
    _installed.registered.cache_clear()
    registry._load.cache_clear()
    _options._parameters.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Put a distribution on the path, as pip would have written it."""
    before = set(sys.modules)

    def put(name: str, files: dict[str, str], entry_points: str, metadata: str = "", version: str = "1.0") -> Path:
        site = tmp_path / name
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        head = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        (info / "METADATA").write_text(head + textwrap.dedent(metadata))
        (info / "entry_points.txt").write_text(textwrap.dedent(entry_points))
        for file, text in files.items():
            (site / file).write_text(text)
        monkeypatch.syspath_prepend(site)
        forget()
        return site

    yield put
    for module in set(sys.modules) - before:
        del sys.modules[module]
    forget()


@pytest.fixture
def trams(install: Install) -> Path:
    return install(
        "city-trams",
        {"city_trams.py": MODULE},
        """
        [turnout.runners]
        tram = city_trams:Tram
        plain = city_trams:Plain
        loose = city_trams:Loose
        lazy = city_trams:Lazy
        object = city_trams:not_a_class
        gone = city_trams:Gone
        [turnout.schemes]
        tram = city_trams:Tram
        plain = city_trams:Plain
        """,
    )


def shown(spec: str) -> str:
    return repr(resolve(spec))


def test_an_object_is_taken_as_it_is() -> None:
    runner = Local(3)
    assert resolve(runner) is runner


def test_a_class_is_called_without_arguments() -> None:
    runner = resolve(Local)
    assert runner == Local()
    assert not Local.started, "making a runner starts nothing"


def test_a_class_that_needs_arguments_says_which() -> None:
    with pytest.raises(RunnerOptionError, match="missing 1 required positional argument: 'address'") as caught:
        resolve(Demanding)
    assert str(caught.value).endswith("It takes address, port=80.")


def test_an_unfinished_class_is_refused() -> None:
    with pytest.raises(RunnerOptionError, match="Can't instantiate abstract class TaskRunner"):
        resolve(TaskRunner)


@pytest.mark.parametrize("spec", [None, 4, int, object(), b"thread", ["thread"]])
def test_other_types_are_refused_with_what_is_accepted(spec: object) -> None:
    with pytest.raises(
        TypeError, match=r"an object or a class derived from turnout.TaskRunner, a word such as 'thread'"
    ):
        resolve(spec)  # type: ignore[arg-type]  # what the test is about


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("tram", "Tram()"),
        ("  tram\n", "Tram()"),
        ("tram?cars=4", "Tram(cars=4)"),
        ("tram:cars=4", "Tram(cars=4)"),
        ("tram:4", "Tram(cars=4)"),
        ("tram?4", "Tram(cars=4)"),
        ("tram:4,line=blue", "Tram(cars=4, line='blue')"),
        ("tram?line=blue&cars=4", "Tram(cars=4, line='blue')"),
        ("tram? cars = 4 & line = blue ", "Tram(cars=4, line='blue')"),
        ("tram?line=a%26b%20c", "Tram(line='a&b c')"),
        ("tram:line=a%26b", "Tram(line='a%26b')"),
        ("tram:spare=(1, 2),line=x", "Tram(line='x', spare=(1, 2))"),
        ("tram:spare={'a': [1, 2]},cars=2", "Tram(cars=2, spare={'a': [1, 2]})"),
        ("tram:spare=none", "Tram()"),
        ("tram:spare=TRUE", "Tram(spare=True)"),
        ("tram:spare=False", "Tram(spare=False)"),
        ("tram:spare=0.5", "Tram(spare=0.5)"),
        ("tram:spare=1e3", "Tram(spare=1000.0)"),
        ("tram:spare=-1", "Tram(spare=-1)"),
        ("tram:spare='4'", "Tram(spare='4')"),
        ("tram:spare=4GiB", "Tram(spare='4GiB')"),
        ("tram:spare=", "Tram(spare='')"),
        ("tram:spare=(1", "Tram(spare='(1')"),
        ("tram:spare=a=b", "Tram(spare='a=b')"),
        ("tram:tcp://host:8786", "Tram(cars='tcp://host:8786')"),
        ("tram:tcp://host:8786/?a=b", "Tram(cars='tcp://host:8786/?a=b')"),
        ("tram:spare=tcp://host:8786/?a=b", "Tram(spare='tcp://host:8786/?a=b')"),
        ("loose?size=1&colour=red", "Loose(size=1, colour='red')"),
        ("plain", "Plain()"),
    ],
)
def test_words_and_their_options(spec: str, expected: str) -> None:
    assert shown(spec) == expected


@pytest.mark.usefixtures("trams")
def test_the_same_word_gives_equal_runners_that_pickle() -> None:
    first, second = resolve("tram:cars=4,line=x"), resolve("tram?line=x&cars=4")
    assert first == second
    assert first is not second
    assert first != resolve("tram:4")
    assert pickle.loads(pickle.dumps(first)) == second


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tram:wagons=4", "Runner 'tram' has no option 'wagons'. It takes cars=1, line='red', spare=None."),
        (
            "tram?crs=4",
            "Runner 'tram' has no option 'crs'. Did you mean 'cars'? It takes cars=1, line='red', spare=None.",
        ),
        ("plain?size=4", "Runner 'plain' has no option 'size'. It takes no options."),
        ("plain:4", "Runner 'plain' can't tell which option '4' is: write name=value. It takes no options."),
        ("tram:4,5", "Runner 'tram' can't tell which option '5' is: write name=value. It takes cars=1, line='red', "),
        ("tram:", "An option of runner 'tram' is empty. It takes cars=1, line='red', spare=None."),
        ("tram?cars=1&", "An option of runner 'tram' is empty. It takes cars=1, line='red', spare=None."),
        ("tram:line=1,5", "Runner 'tram' can't tell which option '5' is: write name=value."),
        ("tram:4,cars=5", "Option 'cars' of runner 'tram' is given twice"),
        ("tram:0", "Runner 'tram' can't be made: ValueError: a tram has a car. It takes cars=1, "),
        ("loose", "missing 1 required positional argument: 'size'. It takes size, **others."),
    ],
)
def test_a_bad_option_names_those_there_are(spec: str, message: str) -> None:
    with pytest.raises(RunnerOptionError) as caught:
        resolve(spec)
    assert message in str(caught.value)


@pytest.mark.usefixtures("trams")
def test_a_refused_value_keeps_its_cause() -> None:
    with pytest.raises(RunnerOptionError) as caught:
        resolve("tram:0")
    assert isinstance(caught.value.__cause__, ValueError)


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize("spec", ["tran", "Tram", "TRAM", "tran?cars=4", "tran:4", "tran:auto", "trom:a=b:c"])
def test_an_unknown_word_lists_the_known_and_the_nearest(spec: str) -> None:
    with pytest.raises(UnknownRunnerError) as caught:
        resolve(spec)
    text = str(caught.value)
    assert text.startswith(f"No runner answers to {spec!r}. Known: ")
    assert text.endswith("Did you mean 'tram'?")
    assert all(f"{word}, " in text for word in ("gone", "lazy", "loose", "plain", "tram"))


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize("spec", ["", "  ", "?", ":", "no such runner at all"])
def test_what_is_like_no_word_gets_no_hint(spec: str) -> None:
    with pytest.raises(UnknownRunnerError) as caught:
        resolve(spec)
    assert "Did you mean" not in str(caught.value)


def test_nothing_registered_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setattr(importlib.metadata, "entry_points", importlib.metadata.EntryPoints)
    with pytest.raises(UnknownRunnerError, match=r"Install this one with: pip install turnout$"):
        resolve("thread")
    forget()


# URLs


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize("url", ["tram://host:8786", "tram://u:p@host/a?b=c&d=e", "tram://"])
def test_a_url_goes_whole_to_the_class_that_claims_its_scheme(url: str) -> None:
    assert vars(resolve(url))["line"] == url


@pytest.mark.usefixtures("trams")
def test_schemes_know_no_case() -> None:
    assert shown("TRAM://Host") == "Tram(line='TRAM://Host')"


@pytest.mark.usefixtures("trams")
def test_an_unknown_scheme_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownRunnerError, match=r"Known: .*plain://, .*tram://.* Did you mean 'tram://'\?$"):
        resolve("trm://host")


@pytest.mark.usefixtures("trams")
def test_a_url_that_the_class_refuses() -> None:
    with pytest.raises(RunnerOptionError, match="Tram can't be made from 'tram://refused': OSError: no such stop"):
        resolve("tram://refused")


@pytest.mark.usefixtures("trams")
def test_a_scheme_whose_class_takes_no_urls() -> None:
    with pytest.raises(RunnerError, match=r"city_trams:Plain claims plain:// but has no class method from_url\(url\)"):
        resolve("plain://host")


# Classes that nobody registered


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("city_trams:Tram", "Tram()"),
        ("city_trams:Tram?cars=2&line=x", "Tram(cars=2, line='x')"),
        ("city_trams:Tram:2", "Tram(cars=2)"),
    ],
)
def test_a_class_is_named_by_its_path(spec: str, expected: str) -> None:
    assert shown(spec) == expected


@pytest.mark.usefixtures("trams")
@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("city_trains:Tram", UnknownRunnerError, "No runner answers to 'city_trains:Tram'. Known: "),
        ("city_trams.deep:Tram", UnknownRunnerError, "No runner answers to 'city_trams.deep:Tram'. Known: "),
        ("city_trams:Bus", RunnerError, "module 'city_trams' has no attribute 'Bus'"),
        ("city_trams:not_a_class", RunnerError, "is Tram(), which is not a class derived from turnout.TaskRunner"),
        ("city_trams:Tram?seats=4", RunnerOptionError, "Runner 'city_trams:Tram' has no option 'seats'"),
    ],
)
def test_a_path_that_leads_nowhere(spec: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        resolve(spec)
    assert message in str(caught.value)


# Registered, but not usable


MISSING_LIBRARY = "import certainly_missing_library.part\n" + MODULE


def test_a_missing_library_names_the_extra(install: Install) -> None:
    install("far-trams", {"far_trams.py": MISSING_LIBRARY}, "[turnout.runners]\nfar = far_trams:Tram [wires,rails]")
    with pytest.raises(MissingRunnerLibraryError) as caught:
        resolve("far:4")
    assert str(caught.value) == (
        "Runner 'far' needs certainly_missing_library, which is not installed. "
        "Install it with: pip install 'far-trams[wires,rails]'"
    )
    assert isinstance(caught.value, ImportError)
    assert caught.value.name == "certainly_missing_library"
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_missing_library_without_extras_is_named_itself(install: Install) -> None:
    install("far-trams", {"far_trams.py": MISSING_LIBRARY}, "[turnout.runners]\nfar = far_trams:Tram")
    with pytest.raises(MissingRunnerLibraryError, match=r"with: pip install certainly_missing_library$"):
        resolve("far")


@pytest.mark.usefixtures("trams")
def test_a_library_missed_only_when_the_runner_is_made() -> None:
    with pytest.raises(MissingRunnerLibraryError, match=r"'lazy' needs certainly_missing_library, .* pip install"):
        resolve("lazy")


def test_a_library_of_the_wrong_version(install: Install) -> None:
    text = "from textwrap import something_newer\n"
    install("far-trams", {"far_trams.py": text}, "[turnout.runners]\nfar = far_trams:Tram [wires]")
    with pytest.raises(MissingRunnerLibraryError, match=r"something_newer.*pip install --upgrade 'far-trams") as caught:
        resolve("far")
    assert str(caught.value).endswith("pip install --upgrade 'far-trams[wires]'")


def test_a_distribution_without_its_module(install: Install) -> None:
    install("far-trams", {}, "[turnout.runners]\nfar = far_trams.deep:Tram")
    with pytest.raises(RunnerError, match=r"no module far_trams.*pip install --force-reinstall far-trams$") as caught:
        resolve("far")
    assert type(caught.value) is RunnerError


def test_a_module_that_fails_on_import(install: Install) -> None:
    install("far-trams", {"far_trams.py": "raise OSError('wire cut')"}, "[turnout.runners]\nfar = far_trams:Tram")
    with pytest.raises(RunnerError, match="'far' can't be loaded from far_trams:Tram: OSError: wire cut"):
        resolve("far")


@pytest.mark.usefixtures("trams")
def test_a_class_that_is_not_there() -> None:
    with pytest.raises(RunnerError, match="'gone' can't be loaded from city_trams:Gone: AttributeError"):
        resolve("gone")


@pytest.mark.usefixtures("trams")
def test_a_registered_object_that_is_no_class() -> None:
    with pytest.raises(RunnerError, match=r"'object' is Tram\(\), which is not a class"):
        resolve("object")


@pytest.mark.usefixtures("trams")
def test_a_word_claimed_twice_is_settled_by_the_user(install: Install) -> None:
    install("other-trams", {"other_trams.py": MODULE}, "[turnout.runners]\ntram = other_trams:Tram")
    with pytest.raises(RunnerError) as caught:
        resolve("tram")
    text = str(caught.value)
    assert "More than one runner answers to 'tram'" in text
    assert "other_trams:Tram of other-trams" in text
    assert "city_trams:Tram of city-trams" in text
    assert shown("other_trams:Tram") == "Tram()"


def test_nobody_takes_a_word_from_turnout(install: Install) -> None:
    install("city-trams", {"city_trams.py": MODULE}, "[turnout.runners]\ntram = city_trams:Tram")
    install("turnout", {"own_trams.py": MODULE}, "[turnout.runners]\ntram = own_trams:Tram", version="99.0")
    assert type(resolve("tram")).__module__ == "own_trams"


# What is known


def test_listing_imports_no_runner(install: Install) -> None:
    install("far-trams", {"far_trams.py": "raise SystemExit"}, "[turnout.runners]\nfar = far_trams:Tram")
    (far,) = [runner for runner in known() if runner.word == "far"]
    assert (far.target, far.distribution, far.version) == ("far_trams:Tram", "far-trams", "1.0")
    assert far.installed
    assert far.install is None
    assert far.libraries == ()
    assert "far_trams" not in sys.modules


EXTRAS = """\
    Requires-Dist: base
    Provides-Extra: wires
    Requires-Dist: Copper.Wire[thick]>=2; extra == 'wires'
    Requires-Dist: only_elsewhere; sys_platform == 'nowhere' and extra == "wires"
    Provides-Extra: rails
    Requires-Dist: iron ; (extra == "rails")
"""


def test_libraries_of_an_extra(install: Install) -> None:
    install("far-trams", {"far_trams.py": ""}, "[turnout.runners]\nfar = far_trams.x:Tram [wires]", EXTRAS)
    install("copper-wire", {}, "", "Provides-Extra: thick\nRequires-Dist: core; extra == 'thick'", version="2.1")
    (far,) = [runner for runner in known() if runner.word == "far"]
    assert far.target == "far_trams.x:Tram"
    assert far.libraries == (Library("Copper.Wire", "2.1"),)
    assert not far.installed, "what the library's own extra needs is not there"
    assert far.install == "pip install 'far-trams[wires]'"
    install("core", {}, "")
    (far,) = [runner for runner in known() if runner.word == "far"]
    assert far.installed
    assert far.install is None


def test_a_missing_library_is_listed_without_a_version(install: Install) -> None:
    install("far-trams", {"far_trams.py": ""}, "[turnout.runners]\nfar = far_trams:Tram [rails]", EXTRAS)
    (far,) = [runner for runner in known() if runner.word == "far"]
    assert far.libraries == (Library("iron", None),)
    assert far.install == "pip install 'far-trams[rails]'"


def test_a_distribution_without_its_module_is_not_installed(install: Install) -> None:
    install("far-trams", {}, "[turnout.runners]\nfar = far_trams.deep:Tram")
    (far,) = [runner for runner in known() if runner.word == "far"]
    assert not far.installed
    assert far.install == "pip install --force-reinstall far-trams"


@pytest.mark.usefixtures("trams")
def test_words_and_schemes_are_listed_in_order() -> None:
    words = [runner.word for runner in known() if runner.distribution == "city-trams"]
    assert words == ["gone", "lazy", "loose", "object", "plain", "plain://", "tram", "tram://"]


def test_records_take_no_further_attributes(trams: Path) -> None:
    with pytest.raises((AttributeError, TypeError)):
        known()[0].colour = "red"  # type: ignore[attr-defined]  # what the test is about


# Cost and threads


def test_importing_the_registry_leaves_slow_modules_alone() -> None:
    program = "import sys, turnout.registry; print('importlib.metadata' in sys.modules, 'click' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.usefixtures("trams")
def test_a_word_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve("tram")
    monkeypatch.setattr(importlib.metadata, "entry_points", None)
    monkeypatch.setattr(importlib.metadata.EntryPoint, "load", None)
    assert shown("tram:cars=2") == "Tram(cars=2)"


@pytest.mark.usefixtures("trams")
def test_threads_may_resolve_at_once() -> None:
    gate = threading.Barrier(8)
    made: list[TaskRunner] = []

    def make() -> None:
        gate.wait(timeout=30)
        made.append(resolve("tram:cars=3"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(made) == 8
    assert all(runner == made[0] for runner in made)
