# Three requests of two CIFAR-10 classes each; four stay.
protocol = dict(tasks=[['airplane', 'cat'], ['dog', 'truck'], ['deer', 'ship']], missing=[])
