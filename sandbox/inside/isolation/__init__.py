"""What keeps a program in: namespaces, file systems, users, system calls, and the seal."""
