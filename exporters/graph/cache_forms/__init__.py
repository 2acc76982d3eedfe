"""The operators of each form of the key/value cache, one file a form; `maskpro_deploy.cache_forms` lists the forms.

What enters: heads of new tokens. What leaves: attention over past and new ones. May import: the files of `graph` but `layers`.
"""
