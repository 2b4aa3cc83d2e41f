# Three requests of four generated persons each; twelve stay.
protocol = dict(
    tasks=[
        ['person_01', 'person_02', 'person_03', 'person_04'],
        ['person_05', 'person_06', 'person_07', 'person_08'],
        ['person_09', 'person_10', 'person_11', 'person_12'],
    ],
    missing=[],
)
