"""Which tests are fast, and the order of the files."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def pytest_configure(config) -> None:
    """The process that only hands out tests uses no fixture, and their imports take seconds."""
    if hasattr(config, 'workerinput') or config.getoption('dist', 'no') == 'no':
        config.pluginmanager.import_plugin('tiny_run')


# Files of a minute each.
LONGEST = ('test_distributed.py', 'test_train.py', 'test_zoo.py')
# Fixtures and folders of tests that train, run a tool or read many configs: all others are fast.
SLOW_FIXTURES = {'tiny_checkpoint', 'run_cfg', 'finished', 'runs', 'zoo', 'shrunk', 'trained'}
SLOW_FOLDERS = {'test_engine', 'test_tools', 'test_benchmarks', 'test_models', 'test_preflight'}
SLOW_FOLDERS |= {'test_report', 'test_requests', 'test_classifier', 'test_loading.py'}
SLOW_FOLDERS |= {'test_compat.py', 'test_env.py', 'test_configs.py', 'test_paper_configs.py'}


def pytest_collection_modifyitems(items) -> None:
    """Mark ``fast`` what a person runs on each save: ``pytest -m fast``."""
    slow = set()
    for item in items:
        folders = set(item.path.relative_to(ROOT / 'tests').parts)
        if SLOW_FIXTURES & set(item.fixturenames) or SLOW_FOLDERS & folders:
            slow.add(item.path)
        else:
            item.add_marker(pytest.mark.fast)
    # Long files first: the last ones to be handed out keep both processes busy to the end.
    items.sort(key=lambda item: (item.path.name not in LONGEST, item.path not in slow))
