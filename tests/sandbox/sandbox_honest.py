"""Ordinary programs, some of them demanding, that must work in the sandbox as they do outside."""

# ruff: noqa: E501 (programs as literals, one to a line, are easier to compare)

from __future__ import annotations

from dataclasses import dataclass, field

from sandbox import Language, Limits

MIB = 1 << 20


@dataclass(frozen=True)
class Honest:
    """A program, its input and what it prints; `processes` where it starts some."""

    name: str
    source: str
    stdin: str = ""
    stdout: str = "ok\n"
    exit_code: int = 0
    processes: bool = False
    limits: Limits = field(default_factory=lambda: Limits(wall_s=10.0))
    language: Language = Language.PYTHON


HONEST = [
    Honest("hello", "print('ok')"),
    Honest("sum_of_input", "print(sum(map(int, input().split())))", "1 2 3\n", "6\n"),
    Honest("lines_until_the_end", "import sys\nprint(sum(int(line) for line in sys.stdin))", "1\n2\n3", "6\n"),
    Honest("end_of_input", "try:\n    while True: input()\nexcept EOFError: print('ok')", "a\nb\n"),
    Honest("fast_input", "import sys\nd = sys.stdin.buffer.read().split()\nprint(len(d))", "7 " * 300_000, "300000\n"),
    Honest("open_zero", "print(len(open(0).read()))", "abc", "3\n"),
    Honest("os_read", "import os; print(os.read(0, 100).decode().strip())", "ok\n"),
    Honest("os_write", "import os; os.write(1, b'ok\\n')"),
    Honest("buffer_write", "import sys; sys.stdout.buffer.write(b'ok\\n')"),
    Honest("dev_stdin", "print(open('/dev/stdin').read())", "ok"),
    Honest("unicode", "print(input()[::-1], 'naïve ☃')", "日本語", "語本日 naïve ☃\n"),
    Honest("bytes_that_are_not_text", "s = input(); print(len(s))", "a\udcffb", "3\n"),
    Honest("much_output", "for i in range(200000): print(i)", stdout="".join(f"{i}\n" for i in range(200_000))),
    Honest("sys_exit", "import sys\nprint('ok')\nsys.exit()"),
    Honest("sys_exit_code", "import sys\nprint('ok')\nsys.exit(3)", exit_code=3),
    Honest("os_exit", "import os, sys\nprint('ok'); sys.stdout.flush(); os._exit(0)"),
    Honest("exit_functions", "import atexit\natexit.register(print, 'ok')"),
    Honest("main_guard", "def main(): print('ok')\nif __name__ == '__main__': main()"),
    Honest(
        "deep_recursion",
        "import sys\nsys.setrecursionlimit(10**6)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\nprint(f(50000))",
        stdout="50000\n",
    ),
    Honest(
        "deep_recursion_in_c",
        "import sys, functools\nsys.setrecursionlimit(10**6)\n@functools.lru_cache(None)\n"
        "def f(n): return n if n < 2 else f(n - 1) + f(n - 2)\nprint(f(8000) % 10**9)",
        stdout="748909125\n",
    ),
    Honest(
        "recursion_in_a_big_thread",
        "import sys, threading\nsys.setrecursionlimit(10**6)\n"
        "threading.stack_size(1 << 27)\ndef f(n): return 0 if n == 0 else 1 + f(n - 1)\n"
        "t = threading.Thread(target=lambda: print(f(100000))); t.start(); t.join()",
        stdout="100000\n",
    ),
    Honest(
        "big_integers",
        "print(pow(3, 10**6, 10**9 + 7), (2 ** 10000) % 1000003, len(str(3 ** 5000)))",
        stdout=f"{pow(3, 10**6, 10**9 + 7)} {2**10000 % 1000003} {len(str(3**5000))}\n",
    ),
    Honest(
        "decimal_and_fractions",
        "from decimal import *\nfrom fractions import *\ngetcontext().prec = 50\n"
        "print(str(Decimal(2).sqrt())[:10], Fraction(1, 3) + Fraction(1, 6))",
        stdout="1.41421356 1/2\n",
    ),
    Honest(
        "heap_and_deque",
        "import heapq, collections\nh = [3, 1, 2]; heapq.heapify(h)\n"
        "print(heapq.heappop(h), collections.deque([1, 2]).pop(), collections.Counter('aab')['a'])",
        stdout="1 2 2\n",
    ),
    Honest(
        "numpy_product",
        "import numpy as np\na = np.arange(10000.0).reshape(100, 100)\n"
        "print(int((a @ a).trace()), np.linalg.matrix_rank(np.eye(5)))",
        stdout="251616502500 5\n",
    ),
    Honest(
        "numpy_random",
        "import numpy as np\nprint(np.random.rand(3).shape, np.random.default_rng(1).integers(5, size=2).size)",
        stdout="(3,) 2\n",
    ),
    Honest(
        "numpy_differs_between_runs",
        "import numpy as np, random\nprint(len({random.random(), np.random.rand()}))",
        stdout="2\n",
    ),
    Honest(
        "threads",
        "import threading\nr = []\nts = [threading.Thread(target=r.append, args=(i,)) for i in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]\nprint(sorted(r))",
        stdout="[0, 1, 2, 3, 4, 5, 6, 7]\n",
    ),
    Honest(
        "thread_pool",
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(16) as p:\n"
        "    print(sum(p.map(lambda x: x * x, range(100))))",
        stdout="328350\n",
    ),
    Honest(
        "thread_left_running",
        "import threading, time\nthreading.Thread(target=lambda: (time.sleep(0.1), print('ok'))).start()",
    ),
    Honest(
        "subprocess",
        "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(40 + 2)'],"
        " capture_output=True, text=True).stdout.strip())",
        stdout="42\n",
        processes=True,
    ),
    Honest("shell", "import os; os.system('echo ok | cat')", processes=True),
    Honest(
        "fork_and_wait",
        "import os\npid = os.fork()\nif pid == 0: os._exit(7)\nprint(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))",
        stdout="7\n",
        processes=True,
    ),
    Honest(
        "multiprocessing_pool",
        "from multiprocessing import Pool\ndef f(x): return x * x\nif __name__ == '__main__':\n"
        "    with Pool(3) as p: print(sum(p.map(f, range(50))))",
        stdout="40425\n",
        processes=True,
    ),
    Honest(
        "multiprocessing_queue",
        "from multiprocessing import Process, Queue, Lock\ndef f(q, l):\n    with l: q.put('ok')\n"
        "if __name__ == '__main__':\n    q, l = Queue(), Lock(); p = Process(target=f, args=(q, l)); p.start()\n"
        "    print(q.get()); p.join()",
        processes=True,
    ),
    Honest(
        "process_pool_executor",
        "from concurrent.futures import ProcessPoolExecutor\nimport math\nif __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(2) as p: print(list(p.map(math.factorial, [3, 4])))",
        stdout="[6, 24]\n",
        processes=True,
    ),
    Honest(
        "asyncio",
        "import asyncio\nasync def main():\n    print(sum(await asyncio.gather(*[asyncio.sleep(0.01, i) for i in range(5)])))\n"
        "asyncio.run(main())",
        stdout="10\n",
    ),
    Honest("files", "open('a.txt', 'w').write('ok')\nprint(open('a.txt').read())"),
    Honest(
        "temporary_file",
        "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f:\n    f.write('ok'); f.seek(0); print(f.read())",
    ),
    Honest(
        "file_in_tmp",
        "import tempfile, os\np = os.path.join(tempfile.gettempdir(), 'x'); open(p, 'w').write('ok'); print(open(p).read())",
    ),
    Honest(
        "sqlite",
        "import sqlite3\nc = sqlite3.connect('x.db'); c.execute('create table t(a)'); c.execute('insert into t values (5)')\n"
        "c.commit(); print(c.execute('select a from t').fetchone()[0])",
        stdout="5\n",
    ),
    Honest(
        "late_imports",
        "import unittest, argparse, csv, uuid, hashlib, logging, inspect, pickle, calendar, html, zlib, bz2\n"
        "print(hashlib.sha256(b'').hexdigest()[:6], uuid.UUID(int=5).int)",
        stdout="e3b0c4 5\n",
    ),
    Honest(
        "doctest_and_dataclass",
        "import dataclasses, doctest\n@dataclasses.dataclass\nclass A:\n    x: int = 1\nprint(A())",
        stdout="A(x=1)\n",
    ),
    Honest(
        "pickle_own_class",
        "import pickle\nclass A:\n    def __init__(self): self.x = 'ok'\nprint(pickle.loads(pickle.dumps(A())).x)",
    ),
    Honest(
        "random_and_time",
        "import random, time, datetime\nrandom.seed(1); a = random.random(); random.seed(1)\n"
        "print(a == random.random(), time.time() > 1e9, datetime.date(2020, 2, 29).isoformat())",
        stdout="True True 2020-02-29\n",
    ),
    Honest(
        "alarm",
        "import signal, time\ndef f(*a): raise TimeoutError\nsignal.signal(signal.SIGALRM, f); signal.setitimer(signal.ITIMER_REAL, 0.05)\n"
        "try: time.sleep(5)\nexcept TimeoutError: print('ok')",
    ),
    Honest(
        "own_signal",
        "import os, signal\nsignal.signal(signal.SIGUSR1, lambda *a: print('ok'))\nos.kill(os.getpid(), signal.SIGUSR1)",
    ),
    Honest("ctypes", "import ctypes; print(ctypes.CDLL(None).abs(-5))", stdout="5\n"),
    Honest("much_memory", "a = bytearray(300 << 20); a[::4096] = b'x' * len(a[::4096]); print('ok')"),
    Honest("error_is_an_error", "print('ok')\n1 / 0", exit_code=1),
    Honest("syntax_error", "print('ok'\n", stdout="", exit_code=1),
    Honest("custom_excepthook", "import sys\nsys.excepthook = None\nprint('ok')"),
    Honest("closed_stdout", "import sys\nprint('ok'); sys.stdout.flush(); sys.stdout.close()"),
    Honest("trailing_spaces", "print('ok ')\nprint()", stdout="ok \n\n"),
    Honest(
        "stack_inspection",
        "import inspect\ndef f(): return inspect.currentframe().f_code.co_name\nprint(f())",
        stdout="f\n",
    ),
    Honest(
        "source_of_itself",
        "def f():\n    return 1\nimport inspect\nprint(inspect.getsource(f).splitlines()[0])",
        stdout="def f():\n",
    ),
    Honest(
        "cpp",
        "#include <iostream>\nint main() { long a, b; std::cin >> a >> b; std::cout << a * b << '\\n'; }",
        "6 7",
        "42\n",
        processes=True,
        language=Language.CPP,
        limits=Limits(wall_s=5.0),
    ),
    Honest(
        "cpp_deep_recursion",
        "#include <cstdio>\nint f(int n) { volatile char pad[64]; pad[0] = n; return n ? 1 + f(n - 1) + 0 * pad[0] : 0; }\n"
        'int main() { printf("%d\\n", f(500000)); }',
        stdout="500000\n",
        processes=True,
        language=Language.CPP,
    ),
    Honest(
        "javascript",
        "const lines = require('fs').readFileSync(0, 'utf8').trim().split('\\n');\nconsole.log(lines.map(Number).reduce((a, b) => a + b));",
        "1\n2\n3",
        "6\n",
        processes=True,
        language=Language.JAVASCRIPT,
    ),
    Honest(
        "javascript_promises",
        "(async () => { await new Promise(r => setTimeout(r, 20)); console.log('ok'); })()",
        processes=True,
        language=Language.JAVASCRIPT,
    ),
    Honest(
        "bash",
        'read name\nfor i in 1 2; do echo "$name $i"; done | sort -r | head -1',
        "x",
        "x 2\n",
        processes=True,
        language=Language.BASH,
    ),
]
