# Three requests of two shape classes each; four classes stay.
protocol = dict(tasks=[['circle', 'square'], ['triangle', 'star'], ['ring', 'arrow']], missing=[])
