"""launch: processes that start, end and fail together; none of these scripts needs JAX."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fedjax_lite.hosts import launch

ROOT = Path(__file__).parents[2]
PATIENCE = 120
"""Seconds until a test gives up; what it waits for takes one or two on an idle machine."""


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text("import os, signal, sys, time\nme = os.environ['JAX_PROCESS_ID']\n" + text)
        return str(path)

    return write


def start(*arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "fedjax_lite.hosts.launch", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process):
    try:
        output, errors = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, output, errors


def test_process_0_is_heard_and_arguments_arrive(script, capfd):
    path = script("print('I am', me, 'of', os.environ['JAX_NUM_PROCESSES'], sys.argv[1:])")
    assert launch.main(["--num-processes", "3", path, "--alpha", "0.1", "--", "x"]) == 0
    output = capfd.readouterr().out
    assert output == "I am 0 of 3 ['--alpha', '0.1', '--', 'x']\n"


def test_verbose_shows_all_with_their_numbers(script, capfd):
    assert launch.main(["--verbose", script("print('hello')")]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[1] hello", "hello"]


MANY = "for i in range(300):\n  print('a', 'line', i)\n  time.sleep(0.0005)\n"


def whole_lines():
    lines = [f"a line {i}" for i in range(300)]
    return sorted([*lines, *(f"[1] {line}" for line in lines)])


def test_lines_of_several_processes_stay_whole(script, capfd):
    assert launch.main(["--verbose", script(MANY)]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == whole_lines()


@pytest.mark.skipif(sys.platform != "linux", reason="a terminal of Linux")
def test_a_last_line_without_its_end_stays_alone(script, capfd):
    assert launch.main(["--verbose", script("sys.stdout.write(f'end of {me}')")]) == 0
    assert sorted(capfd.readouterr().out.splitlines()) == ["[1] end of 1", "end of 0"]


def test_nobody_waits_for_a_reader_who_left(script):
    """As with `| head`: more than a pipe holds is written after it."""
    process = start("--verbose", script("for _ in range(3000): print('x' * 100)"))
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=PATIENCE) in (0, 120)  # Python's own for an output that is gone
    assert process.stderr is not None
    process.stderr.close()


def test_process_0_owns_a_terminal_and_lines_stay_whole(script):
    terminal, end = os.openpty()
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fedjax_lite.hosts.launch", "--verbose"),
            script("print(sys.stdout.isatty())\n" + MANY),
        ],
        cwd=ROOT,
        stdout=end,
        start_new_session=True,
    )
    os.close(end)
    output = b""
    with open(terminal, "rb", buffering=0) as screen:
        while True:
            try:
                piece = screen.read(65536)
            except OSError:  # EIO: everyone has closed the other end
                break
            if not piece:
                break
            output += piece
    assert process.wait(timeout=PATIENCE) == 0
    lines = output.decode().split("\r\n")
    assert sorted(lines) == sorted(["", "True", "[1] False", *whole_lines()])


def test_what_initialize_reads(script, capfd, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--a=1 --xla_force_host_platform_device_count=8 --b=2")
    names = [
        "COORDINATOR_ADDRESS",
        "COORDINATOR_BIND_ADDRESS",
        "LOCAL_DEVICE_IDS",
        "NUM_CPU_DEVICES",
    ]
    text = f"print([os.environ['JAX_' + n] for n in {names}], os.environ['XLA_FLAGS'].split())"
    flags = ["--devices-per-process", "2", "--heartbeat-seconds", "7", "--verbose"]
    path = script(text + "\nassert os.environ['FEDJAX_LITE_HEARTBEAT_SECONDS'] == '7'")
    assert launch.main([*flags, path]) == 0
    lines = sorted(capfd.readouterr().out.replace("[1] ", "").splitlines())
    pattern = r"\['(127\.0\.0\.1:\d+)', '\1', '{}', '2'\] \['--a=1', '--b=2'\]"
    assert re.fullmatch(pattern.format("0,1"), lines[0])
    assert re.fullmatch(pattern.format("2,3"), lines[1])
    assert lines[0].split()[0] == lines[1].split()[0]


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="needs Linux and two cores",
)
def test_each_process_has_its_own_core(script, capfd):
    path = script("print(os.sched_getaffinity(0), os.environ['NPROC'])")
    assert launch.main(["--cores", "1", "--verbose", path]) == 0
    first, second = sorted(os.sched_getaffinity(0))[:2]
    assert sorted(capfd.readouterr().out.splitlines()) == [f"[1] {{{second}}} 1", f"{{{first}}} 1"]
    with pytest.raises(SystemExit, match="cores"):
        launch.main(["--num-processes", "1000", "--cores", "1", path])


def test_one_fails_and_the_others_are_stopped(script, capfd):
    path = script("if me == '1':\n  print('boom')\n  sys.exit(3)\ntime.sleep(600)")
    began = time.monotonic()
    assert launch.main([path]) == 3
    assert time.monotonic() - began < PATIENCE  # and not the 600 s of the other
    errors = capfd.readouterr().err
    assert "[1] boom" in errors
    assert "process 1 failed with exit code 3" in errors
    assert "--resume" in errors


def test_a_killed_process_is_named_and_a_stubborn_one_killed(script, capfd, tmp_path):
    deaf = tmp_path / "deaf"  # there as soon as the stubborn one is
    text = (
        f"deaf = {str(deaf)!r}\n"
        "if me == '0':\n"
        "  while not os.path.exists(deaf): time.sleep(0.01)\n"
        "  os.kill(os.getpid(), 9)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "open(deaf, 'w').close()\n"
        "time.sleep(600)"
    )
    began = time.monotonic()
    assert launch.main(["--grace-seconds", "0.5", script(text)]) == 128 + 9
    assert 0.5 <= time.monotonic() - began < PATIENCE
    assert "process 0 was killed by SIGKILL" in capfd.readouterr().err


COUNTING = """
count = 0
def note(number, frame):
    global count
    count += 1
signal.signal(signal.SIGINT, note)
signal.signal(signal.SIGTERM, note)
print('ready', flush=True)
began = time.monotonic()
while not count and time.monotonic() - began < 600:
    time.sleep(0.01)
time.sleep(0.3)
print('signals', count, flush=True)
sys.exit(1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process_once(script, number):
    process = start("--verbose", script(COUNTING))
    assert process.stdout is not None
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[1] ready\n", "ready\n"]
    process.send_signal(number)
    code, output, _ = finish(process)
    assert code == 128 + number
    assert sorted(output.splitlines()) == ["[1] signals 1", "signals 1"]


def test_a_second_signal_kills(script):
    text = "signal.signal(signal.SIGINT, lambda *_: print('no', flush=True))\n"
    text += "print('ready', flush=True)\nuntil = time.monotonic() + 600\n"
    text += "while time.monotonic() < until: time.sleep(1)"
    process = start("--verbose", script(text))
    assert process.stdout is not None
    for _ in range(2):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    said = sorted(process.stdout.readline() for _ in range(2))
    assert said == ["[1] no\n", "no\n"]  # a second one before that could be lost
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, _ = finish(process)
    assert code == 130


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux")
def test_processes_die_with_a_killed_launcher(script):
    process = start("--verbose", script("print(os.getpid(), flush=True)\ntime.sleep(600)"))
    assert process.stdout is not None
    children = [int(process.stdout.readline().replace("[1] ", "")) for _ in range(2)]
    process.kill()
    process.wait()

    def alive(child):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return False
        return state != "Z"

    until = time.monotonic() + PATIENCE
    while any(map(alive, children)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(alive, children))


@pytest.mark.parametrize("flags", [["--num-processes", "0", "x.py"], []])
def test_bad_flags(flags):
    with pytest.raises(SystemExit):
        launch.main(flags)
