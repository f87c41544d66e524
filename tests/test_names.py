"""A task has one name however the app is started, so that what one start stored the next can run."""

import json
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]

MAIN = """
import json
import sys
from durableq import DurableQ, InvalidTask

dq = DurableQ("never-opened.db")


def work(number: int = 0) -> None: ...


@dq.task
def decorated() -> None: ...


def name_of(function):
    try:
        return dq.new_job(function, (), {}).task
    except InvalidTask as error:
        return f"InvalidTask: {error}"


def say(*functions):
    names = [name_of(function) for function in (work, decorated, *functions)]
    assert all(dq.find_task(name) is not None for name in names[:2])
    print(json.dumps(names))
"""
SAY = "\nsay()\n"

LOADED_BY_NAME = """
def load_as_uvicorn_does():
    import uvicorn

    config = uvicorn.Config("main:app")
    config.load()
    import main

    assert main is not sys.modules["__main__"]
    assert main.dq.find_task("main:name_of").function is main.name_of
    main.say()


async def app(scope, receive, send): ...


if __name__ == "__main__":
    import multiprocessing

    if sys.argv[1:] == ["reload"]:
        child = multiprocessing.get_context("spawn").Process(target=load_as_uvicorn_does)
        child.start()
        child.join()
        sys.exit(child.exitcode)
    load_as_uvicorn_does()
"""


def started(directory: Path, *commands: list[str], path: Path | None = None) -> list[list[str]]:
    """Start Python once for each command, side by side, and return what each said."""
    search = os.pathsep.join(str(one) for one in (REPOSITORY, path) if one)
    environment = {**os.environ, "PYTHONPATH": search}
    running = [
        subprocess.Popen([sys.executable, *command], cwd=directory, env=environment, stdout=subprocess.PIPE, text=True)
        for command in commands
    ]
    outputs = [process.communicate(timeout=30)[0] for process in running]
    assert [process.returncode for process in running] == [0] * len(running)
    return [json.loads(output) for output in outputs]


def write(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_module_has_one_name_however_it_is_started(tmp_path: Path) -> None:
    main = write(tmp_path / "main.py", MAIN + SAY)
    (tmp_path / "elsewhere").mkdir()
    at_home = started(tmp_path, ["main.py"], ["-m", "main"], ["-c", "import main"])
    elsewhere = started(tmp_path / "elsewhere", [str(main)], ["../main.py"])
    assert at_home + elsewhere == [["main:work", "main:decorated"]] * 5


def test_a_module_in_a_package_has_one_name_however_it_is_started(tmp_path: Path) -> None:
    for directory in ("shop", "shop/backend"):
        write(tmp_path / directory / "__init__.py")
    write(tmp_path / "shop" / "backend" / "main.py", MAIN + SAY)
    outside = started(
        tmp_path, ["-m", "shop.backend.main"], ["-c", "import shop.backend.main"], ["shop/backend/main.py"]
    )
    inside = started(tmp_path / "shop" / "backend", ["main.py"], ["-m", "main"])
    assert outside + inside == [["shop.backend.main:work", "shop.backend.main:decorated"]] * 5


def test_a_program_that_has_uvicorn_load_it_by_its_name_has_the_tasks_of_that(tmp_path: Path) -> None:
    """``uvicorn.run("main:app")`` in main.py loads main.py a second time; with ``reload=True``, in a child process."""
    write(tmp_path / "main.py", MAIN + LOADED_BY_NAME)
    assert started(tmp_path, ["main.py"], ["main.py", "reload"]) == [["main:work", "main:decorated"]] * 2


def test_a_queue_in_a_module_of_its_own_takes_the_tasks_of_a_program_that_is_loaded_twice(tmp_path: Path) -> None:
    write(tmp_path / "jobs.py", "from durableq import DurableQ\ndq = DurableQ('never-opened.db')\n")
    registering = "import json\nfrom jobs import dq\n@dq.task(max_attempts=2)\ndef send(): ...\ndef plain(): ...\n"
    twice = "if __name__ == '__main__':\n    import main\n    assert main.send is not send\n"
    twice += "    tasks = [main.send, send, main.plain, plain]\n"
    twice += "    print(json.dumps([dq.new_job(task, (), {}).task for task in tasks]))\n"
    write(tmp_path / "main.py", registering + twice)
    assert started(tmp_path, ["main.py"]) == [["main:send", "main:send", "main:plain", "main:plain"]]


def test_modules_side_by_side_belong_to_the_app_and_others_do_not(tmp_path: Path) -> None:
    app, elsewhere = tmp_path / "app", tmp_path / "elsewhere"
    write(app / "tasks.py", "def side_by_side() -> None: ...\n")
    write(app / "parts" / "deep.py", "def deeper() -> None: ...\n")
    write(elsewhere / "helpers.py", "def foreign() -> None: ...\n")
    write(app / "main.py", MAIN + "import tasks, parts.deep, helpers\nsay(tasks.side_by_side, helpers.foreign)\n")
    [[_, _, side_by_side, foreign]] = started(app, ["main.py"], path=elsewhere)
    assert side_by_side == "tasks:side_by_side"
    assert foreign.startswith("InvalidTask")
    assert "does not belong to this app" in foreign


def test_packages_installed_below_the_app_are_not_its_own(tmp_path: Path) -> None:
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    write(packages / "vendor.py", "def foreign() -> None: ...\n")
    write(tmp_path / "main.py", MAIN + "import vendor\nsay(vendor.foreign)\n")
    [[_, _, foreign]] = started(tmp_path, ["main.py"], path=packages)
    assert foreign.startswith("InvalidTask")


def test_an_installed_app_does_not_take_its_neighbours_for_its_own(tmp_path: Path) -> None:
    packages = tmp_path / "site-packages"
    write(packages / "shop" / "__init__.py")
    write(packages / "shop" / "tasks.py", "def own() -> None: ...\n")
    write(packages / "shop" / "main.py", MAIN + "import shop.tasks, vendor\nsay(shop.tasks.own, vendor.foreign)\n")
    write(packages / "vendor.py", "def foreign() -> None: ...\n")
    [[work, _, own, foreign]] = started(tmp_path, ["-m", "shop.main"], path=packages)
    assert (work, own) == ("shop.main:work", "shop.tasks:own")
    assert foreign.startswith("InvalidTask")


def test_an_interactive_session_may_only_use_decorated_tasks_of_a_module(tmp_path: Path) -> None:
    script = "from durableq import DurableQ, InvalidTask\nimport json\ndq = DurableQ('x.db')\ndef work(): ...\n"
    script += "try:\n    dq.new_job(work, (), {})\nexcept InvalidTask as error:\n    print(json.dumps([str(error)]))\n"
    [[error]] = started(tmp_path, ["-c", script])
    assert "does not belong to this app" in error


def test_a_queue_that_is_never_started_touches_nothing(tmp_path: Path) -> None:
    write(tmp_path / "main.py", MAIN + SAY)
    started(tmp_path, ["-B", "main.py"])
    assert [file.name for file in tmp_path.iterdir()] == ["main.py"]
