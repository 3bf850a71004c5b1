"""The layers around a program: namespaces, file systems, users, system calls, and the seal."""
