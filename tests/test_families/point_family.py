"""A fourth family, of points in the plane: all that loop, tuner, audit and report need of one."""

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, MODELS
from mmengine.structures import BaseDataElement
from torch import nn

from mmgslora.families import Family, register_family
from mmgslora.families.audited_model import AuditedModel, Images, Objects
from mmgslora.families.base import ForgettingModel, taken
from mmgslora.families.classifier.metric import ForgettingAccuracyMetric
from mmgslora.families.drawing import Drawing
from mmgslora.families.view import Matching, Outputs, View

CLASSES = ('east', 'north', 'west', 'south')
CENTRES = np.array([[3.0, 0.0], [0.0, 3.0], [-3.0, 0.0], [0.0, -3.0]])


@DATASETS.register_module()
class Points(BaseDataset):
    METAINFO = dict(classes=CLASSES)

    def load_data_list(self):
        rng = np.random.default_rng(self.metainfo['seed'])
        rows = [(i % 4, CENTRES[i % 4] + rng.normal(scale=0.5, size=2)) for i in range(80)]
        return [dict(img_id=i, gt_label=y, point=x) for i, (y, x) in enumerate(rows)]

    def full_init(self):
        super().full_init()
        self.pipeline = packed


def packed(info):
    sample = BaseDataElement(gt_label=torch.tensor(info['gt_label']))
    return dict(inputs=torch.as_tensor(info['point']).float(), data_samples=sample)


@MODELS.register_module()
class PointModel(BaseModel):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(2, 8), nn.Linear(8, 4)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        embeddings = self.body(torch.stack(list(inputs))).relu()
        logits = self.head(embeddings)
        if mode == 'loss':
            labels = torch.stack([sample.gt_label for sample in data_samples])
            return dict(loss_ce=F.cross_entropy(logits, labels))
        if mode == 'predict':
            for sample, row in zip(data_samples, logits):
                sample.set_data(dict(pred_scores=row.softmax(-1), pred_label=row.argmax()))
            return data_samples
        return logits, embeddings


@MODELS.register_module()
class ForgettingPoints(ForgettingModel):
    model_key, num_classes = 'points', 4

    def __init__(self, points, method, tune=None, init_cfg=None):
        super().__init__(MODELS.build(points), method, tune, init_cfg)

    @property
    def classifier_weight(self):
        return self.points.head.weight

    def views(self, inputs, data_samples, sides=('forget', 'retain'), teachers=()):
        inputs, samples = taken(inputs, data_samples, sides)
        labels = torch.stack([sample.gt_label for sample in samples])
        now, before, views = Outputs(*self.points(inputs)), {}, {}
        for name in teachers:
            with torch.no_grad(), self.tune.teacher(name) as teacher:
                before[name] = Outputs(*teacher(inputs))
        for side in sides:
            rows = self._rows_of(side, samples)
            loss = F.cross_entropy(now.logits[rows], labels[rows])
            found = Matching(labels[rows], torch.arange(len(rows)), dict(loss_ce=loss))
            past = {name: outputs[rows] for name, outputs in before.items()}
            views[side] = View(side, now[rows], lambda found=found: found, past)
        return views

    def relabelled(self, sample, draw):
        return BaseDataElement(metainfo=sample.metainfo, gt_label=draw(sample.gt_label[None])[0])


class PointImages(Images):
    seen_through = 'pipeline'

    def __init__(self, dataset, pipeline=None, batch_size=32, evaluator=None):
        self.dataset = DATASETS.build(dataset)
        self.classes, self.batch_size = CLASSES, batch_size

    def __len__(self):
        return len(self.dataset)

    def labels(self, index):
        return np.array([self.dataset.get_data_info(index)['gt_label']])


class AuditedPoints(AuditedModel):
    metric, clip_norm = 'Acc', 1.0

    def objects(self, data, images=None):
        images = np.arange(len(data)) if images is None else np.asarray(images)
        batch = pseudo_collate([data.dataset[int(i)] for i in images])
        with torch.no_grad():
            logits, embeddings = self.model(batch['inputs'])
        log_probs = logits.log_softmax(-1).numpy()
        labels = np.concatenate([data.labels(i) for i in images])
        features = dict(embedding=embeddings.numpy())
        return Objects(labels, images, features, np.exp(log_probs), log_probs)

    def evaluate(self, data, images=None, gone=()):
        found = self.objects(data, images)
        right = 100.0 * (found.log_probs.argmax(-1) == found.labels)
        return {CLASSES[label]: right[found.labels == label].mean() for label in set(found.labels)}

    def loss(self, data, images, labels):
        batch = pseudo_collate(
            [data.dataset[int(i)] for i in images if data.labels(i)[0] in labels]
        )
        return self.model(**batch, mode='loss')['loss_ce']

    @property
    def class_rows(self):
        return [(self.model.head.weight, self.model.head.bias)]

    @property
    def class_layers(self):
        return [self.model.head]


class PointDrawing(Drawing):
    num_images, rule = 2, 'points'

    def choose(self, dataset, protocol, look, count):
        return {index: look(index) for index in range(count)}

    def found(self, sample):
        return dict(label=int(sample.pred_label))

    def figure(self, shown):
        figure = Figure()
        figure.add_subplot().scatter(*zip(*(info['point'] for info in shown.infos)))
        return figure


def plain_config(config, classes):
    config['test_dataloader']['dataset']['metainfo']['classes'] = tuple(classes)


register_family(
    Family(
        'points',
        ForgettingPoints,
        AuditedPoints,
        PointImages,
        PointDrawing,
        ForgettingAccuracyMetric,
        plain_config,
    )
)
