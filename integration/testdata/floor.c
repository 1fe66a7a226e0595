// The least that a sandbox of this shape costs, for `make bench`: a process in new user, mount, pid, uts, ipc,
// cgroup and network namespaces, on an overlay of its own with a fresh /proc, that runs a program.
//
// usage: floor LOWERDIR SCRATCH FIRST_ID PROGRAM [ARG...]
#define _GNU_SOURCE
#include <err.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char **args;
static int ready[2];

static void check(int failed, const char *what)
{
	if (failed)
		err(1, "%s", what);
}

static int child(void *unused)
{
	char options[4096], c;

	(void)unused;
	close(ready[1]);
	check(read(ready[0], &c, 1) != 1, "wait for the id maps");
	check(setgid(0) || setuid(0), "become root of the namespace");
	check(mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL), "make mounts private");
	check(chdir(args[2]), args[2]);
	check(mkdir("upper", 0755) || mkdir("work", 0755) || mkdir("root", 0755), "make directories");
	snprintf(options, sizeof options, "lowerdir=%s,upperdir=upper,workdir=work,userxattr", args[1]);
	check(mount("overlay", "root", "overlay", 0, options), "mount overlay");
	check(chdir("root"), "root");
	check(mount("proc", "proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL), "mount proc");
	check(syscall(SYS_pivot_root, ".", "."), "pivot_root");
	check(umount2(".", MNT_DETACH), "unmount the old root");
	check(chdir("/"), "/");
	execv(args[4], args + 4);
	err(1, "%s", args[4]);
}

static void map(pid_t pid, const char *file)
{
	char path[64], text[64];

	snprintf(path, sizeof path, "/proc/%d/%s", pid, file);
	int n = snprintf(text, sizeof text, "0 %s 65536", args[3]);
	int fd = open(path, O_WRONLY);
	check(fd < 0 || write(fd, text, n) != n || close(fd), path);
}

int main(int argc, char **argv)
{
	static char stack[65536] __attribute__((aligned(16)));
	int status;

	if (argc < 5)
		errx(2, "usage: floor LOWERDIR SCRATCH FIRST_ID PROGRAM [ARG...]");
	args = argv;
	check(pipe(ready), "pipe");
	pid_t pid = clone(child, stack + sizeof stack, SIGCHLD | CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID |
		CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWCGROUP | CLONE_NEWNET, NULL);
	check(pid < 0, "clone");
	map(pid, "uid_map");
	map(pid, "gid_map");
	check(write(ready[1], "", 1) != 1, "go");
	check(waitpid(pid, &status, 0) != pid, "wait");
	return WIFEXITED(status) ? WEXITSTATUS(status) : 1;
}
