import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog


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
