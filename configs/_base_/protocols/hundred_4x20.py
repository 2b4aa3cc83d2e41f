# The authors' protocol for 100 classes (CASIA-Face100 and ImageNet100): the numbers of the class
# folders in sorted order, shuffled with seed 1337, are forgotten twenty at a time from the end of
# the list; the first twenty stay.
protocol = dict(
    order=[
        83, 17, 10, 9, 89, 52, 7, 32, 37, 77, 61, 34, 78, 55, 56, 63, 69, 22, 75, 66,  # stay
        35, 72, 71, 23, 86, 38, 24, 5, 29, 30, 16, 11, 82, 19, 57, 14, 91, 27, 98, 53,  # task 4
        0, 20, 59, 28, 47, 18, 6, 48, 12, 62, 1, 43, 3, 60, 41, 85, 4, 95, 97, 36,  # task 3
        94, 65, 67, 99, 25, 33, 70, 40, 92, 31, 58, 15, 45, 2, 87, 76, 80, 44, 64, 8,  # task 2
        51, 54, 13, 88, 84, 26, 50, 39, 96, 81, 49, 42, 21, 93, 74, 73, 46, 90, 68, 79,  # task 1
    ],
    sizes=[20, 20, 20, 20],
)  # fmt: skip
