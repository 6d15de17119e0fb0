"""Others at the same work: Ansible, pyinfra, bare Fabric and plain OpenSSH do eight tasks, each its own way.

`tasks/` is what they are given; they run as processes of an environment of their own and are never imported.
"""
