import signal

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


def pytest_configure():
    """Let Ctrl-C interrupt also in the background of a script, where shells have it ignored: tests send it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def catalog():
    """Forget after the test which datasets it has registered, and restore those that it has changed."""
    before = dict(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - set(before):
        DatasetCatalog.remove(name)
        if name in MetadataCatalog.list():
            MetadataCatalog.remove(name)
    DatasetCatalog.update(before)
