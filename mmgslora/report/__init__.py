from mmgslora.report.figures import group_map, plot_forgetting
from mmgslora.report.pictures import draw_before_after
from mmgslora.report.table import forgetting_table, summary_lines

__all__ = [
    'draw_before_after',
    'forgetting_table',
    'group_map',
    'plot_forgetting',
    'summary_lines',
]
