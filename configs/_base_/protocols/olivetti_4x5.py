# Four requests of five persons each, from the last one down; twenty stay.
protocol = dict(order=[f's{number:02d}' for number in range(1, 41)], sizes=[5, 5, 5, 5])
