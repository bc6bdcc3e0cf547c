"""The canary: is the version that a share of conversations gets surely worse, surely not, or is it too early to say?"""
