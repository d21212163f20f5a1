"""Where in its images a model found what it wrote.

from explain.looking import where_it_looked
"""
