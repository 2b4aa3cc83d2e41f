# Runtime of the classifiers' and face recognisers' configs: MMEngine's own, nothing of MMDetection.
_base_ = './default_runtime.py'
default_scope = 'mmengine'
visualizer = dict(type='Visualizer')
