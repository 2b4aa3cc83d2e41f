from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent


def requirements(name: str) -> list[str]:
    lines = (HERE / 'requirements' / f'{name}.txt').read_text().splitlines()
    return [line for line in lines if line and not line.startswith(('#', '-'))]


setup(
    name='mmgslora',
    version='0.1.0',
    description='Continual forgetting with Group Sparse LoRA for MMDetection',
    long_description=(HERE / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    packages=find_packages(include=['mmgslora', 'mmgslora.*']),
    package_data={'mmgslora.report': ['*.j2', '*.css']},
    python_requires='>=3.10',
    install_requires=requirements('runtime'),
    extras_require={
        **{name: requirements(name) for name in ('onnx', 'signing', 'test')},
        # Other libraries' classifiers, for TimmClassifier and LibraryClassifier.
        'timm': ['timm>=0.9'],
        'mmpretrain': ['mmpretrain>=1.0'],
    },
)
