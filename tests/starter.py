"""Tools in processes of their own, as copies of one that has imported everything already.

The imports are most of a tiny run. Run as a script this is the process that is copied: it reads a
command a line and answers with how its processes ended.
"""

import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

LIMIT = 400  # seconds a command may take


class Starter:
    """Runs a script once for each of the environments given, at the same time."""

    def __init__(self, root: Path) -> None:
        paths = os.pathsep.join(map(str, (root, Path(__file__).parent)))
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | dict(PYTHONPATH=paths, OMP_NUM_THREADS='1', OMP_WAIT_POLICY='PASSIVE'),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __call__(self, script, *arguments, environments=({},), cwd=None, whole=False):
        """What all of them printed, and the exit code of the first that failed.

        ``whole`` ones are spared nothing of a run (tests/spare.py).
        """
        command = [str(script), *map(str, arguments)]
        with TemporaryDirectory() as folder:
            out, err = Path(folder, 'out'), Path(folder, 'err')
            line = [command, environments, str(cwd or self.root), whole, str(out), str(err)]
            print(json.dumps(line), file=self.process.stdin, flush=True)
            codes = json.loads(self.process.stdout.readline())
            code = next(filter(None, codes), 0)
            return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())

    def close(self) -> None:
        self.process.communicate()


def serve() -> None:
    """Read and copy to the end of the input; returns in the copies alone, ready for the script."""
    for line in sys.stdin:
        command, environments, cwd, whole, out, err = json.loads(line)
        children = []
        for environment in environments:
            child = os.fork()
            if child == 0:
                os.environ.update(environment)
                os.chdir(cwd)
                if not whole:
                    spare_runs()
                _become(command, out, err)
                return
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)
    sys.exit()


def _become(command: list[str], out: str, err: str) -> None:
    for path, number in ((os.devnull, 0), (out, 1), (err, 2)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags, 0o644), number)
    # A suite that a shell runs in its background hands on that Ctrl-C is to be ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.alarm(LIMIT)
    sys.argv = command


if __name__ == '__main__':
    from spare import spare_imports, spare_runs

    spare_imports()
    serve()
    runpy.run_path(sys.argv[0], run_name='__main__')
