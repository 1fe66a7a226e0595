"""Sums the numbers behind each name and prints the largest sum."""
import sys

sums = {}
for line in sys.stdin:
    name, number = line.split()
    sums[name] = sums.get(name, 0) + int(number)
name = max(sums, key=sums.get)
print(name, sums[name])
