"""What must hold of the package as a whole, so that the tree says where a line is."""

import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median

import mmgslora

PACKAGE = Path(mmgslora.__file__).parent
FILES = {path: path.read_text() for path in sorted(PACKAGE.rglob('*.py'))}


def test_files_are_short():
    lengths = [text.count('\n') for text in FILES.values()]
    assert max(lengths) <= 400 and median(lengths) <= 100


def test_no_six_lines_stand_twice():
    places = defaultdict(set)
    for path, text in FILES.items():
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        lines = [line for line in lines if not line.startswith(('import ', 'from '))]
        for i in range(len(lines) - 5):
            places['\n'.join(lines[i : i + 6])].add(path)
    assert not [block for block, paths in places.items() if len(paths) > 1]


def test_only_the_adapters_know_their_names():
    inside = ('lora', 'tuning')
    outside = [p for p in FILES if p.relative_to(PACKAGE).parts[0] not in inside]
    assert not [p for p in outside if "'lora_" in FILES[p]]


def test_a_method_knows_no_family():
    """Importing one imports neither a family nor what only families and reports need."""
    for path, text in FILES.items():
        if path.parent.name == 'methods':
            lines = [line for line in text.splitlines() if 'mmgslora.families' in line]
            imports = [line.strip() for line in lines if 'import' in line]
            known = ('from mmgslora.families.view import', 'from mmgslora.families.base import')
            assert all(line.startswith(known) for line in imports), path
    code = (
        'import sys, mmgslora.methods\n'
        'heavy = ("mmdet", "matplotlib", "mmgslora.families.base", "mmgslora.families.detector")\n'
        'print([name for name in heavy if name in sys.modules])'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '[]'


def test_loop_and_hooks_name_no_family():
    for path, text in FILES.items():
        if path.parent.name == 'engine':
            assert 'families.detector' not in text and 'families.classifier' not in text, path


def test_a_source_distribution_has_what_its_setup_reads(tmp_path):
    code = [sys.executable, 'setup.py', '-q', 'egg_info', '--egg-base', str(tmp_path)]
    subprocess.run(code, cwd=PACKAGE.parent, capture_output=True, check=True)
    sources = (tmp_path / 'mmgslora.egg-info/SOURCES.txt').read_text().splitlines()
    read = [f'requirements/{name}.txt' for name in ('runtime', 'onnx', 'signing', 'test')]
    assert {*read, 'mmgslora/report/page.html.j2', 'mmgslora/report/page.css'} <= {*sources}
