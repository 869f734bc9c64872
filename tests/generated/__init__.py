"""Generated tasks of property tests: a recipe of plain values is drawn, and a model, a loss and a sample made from it.

``layers`` and ``modules``: what models are made of; ``recipes``: what is drawn; ``tasks``: a task as it is given to the
package, and as it is evaluated naively; ``answers``: what is asked of it, and how it is compared.
"""
