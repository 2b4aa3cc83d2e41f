from mmgslora.report.figures import group_map, plot_forgetting
from mmgslora.report.label_pictures import draw_labels
from mmgslora.report.pictures import draw_before_after
from mmgslora.report.table import forgetting_table, summary_lines

__all__ = [
    'draw_before_after',
    'draw_labels',
    'forgetting_table',
    'group_map',
    'plot_forgetting',
    'summary_lines',
]
