/*
 * Calls the kernel interfaces that no shell command reaches, and prints one line for each:
 * "ok NAME" or "not ok NAME: errno text". Linked statically; started by `init`.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <linux/vm_sockets.h>
#include <mqueue.h>
#include <sched.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/fanotify.h>
#include <sys/inotify.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/shm.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/wait.h>
#include <unistd.h>

static int failures;

static void report(const char *name, long result)
{
	if (result >= 0) {
		printf("ok %s\n", name);
	} else {
		printf("not ok %s: %s\n", name, strerror(errno));
		failures++;
	}
}

static long vsock_listen(void)
{
	struct sockaddr_vm address = {
		.svm_family = AF_VSOCK, .svm_port = 1024, .svm_cid = VMADDR_CID_ANY,
	};
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -1;
	return listen(fd, 1);
}

static long io_uring(void)
{
	struct io_uring_params params = { 0 };

	return syscall(SYS_io_uring_setup, 4, &params);
}

/* A device filter as an OCI runtime attaches it to a container's cgroup: allows everything. */
static long bpf_cgroup_device_program(void)
{
	struct bpf_insn code[] = {
		{ .code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1 },
		{ .code = BPF_JMP | BPF_EXIT },
	};
	union bpf_attr attr = {
		.prog_type = BPF_PROG_TYPE_CGROUP_DEVICE,
		.insns = (unsigned long)code,
		.insn_cnt = 2,
		.license = (unsigned long)"GPL",
	};
	int program = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof(attr));
	int cgroup = open("/sys/fs/cgroup/bpf", O_RDONLY | O_DIRECTORY);
	union bpf_attr attach = {
		.target_fd = cgroup, .attach_bpf_fd = program, .attach_type = BPF_CGROUP_DEVICE,
	};

	if (program < 0 || cgroup < 0)
		return -1;
	return syscall(SYS_bpf, BPF_PROG_ATTACH, &attach, sizeof(attach));
}

/* getppid answers EPERM in a child that has installed a filter saying so. */
static long seccomp_filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_getppid, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { .len = 4, .filter = code };
	int status;
	pid_t child = fork();

	if (child == 0) {
		prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
		if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
			_exit(1);
		_exit(syscall(SYS_getppid) == -1 && errno == EPERM ? 0 : 2);
	}
	waitpid(child, &status, 0);
	return status == 0 ? 0 : -1;
}

static long all_namespaces(void)
{
	int status;
	pid_t child = fork();

	if (child == 0)
		_exit(unshare(CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC |
			      CLONE_NEWUTS | CLONE_NEWCGROUP | CLONE_NEWTIME) ? errno : 0);
	waitpid(child, &status, 0);
	errno = WEXITSTATUS(status);
	return status == 0 ? 0 : -1;
}

int main(void)
{
	sigset_t none;

	sigemptyset(&none);
	setvbuf(stdout, NULL, _IONBF, 0);
	report("vsock stream socket listens", vsock_listen());
	report("seccomp filter", seccomp_filter());
	report("bpf device program on a cgroup", bpf_cgroup_device_program());
	report("unshare of all namespaces", all_namespaces());
	report("landlock", syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION));
	report("io_uring", io_uring());
	report("userfaultfd", syscall(SYS_userfaultfd, O_CLOEXEC));
	report("membarrier", syscall(SYS_membarrier, 0, 0, 0));
	report("kcmp", syscall(SYS_kcmp, getpid(), getpid(), 0, 0, 1));
	report("pidfd_open", syscall(SYS_pidfd_open, getpid(), 0));
	report("memfd_create", memfd_create("check", MFD_CLOEXEC));
	report("eventfd", eventfd(0, 0));
	report("timerfd", timerfd_create(CLOCK_MONOTONIC, 0));
	report("signalfd", signalfd(-1, &none, 0));
	report("inotify", inotify_init());
	report("fanotify", fanotify_init(FAN_CLASS_NOTIF, O_RDONLY));
	report("add_key", syscall(SYS_add_key, "user", "check", "x", 1, -2 /* process keyring */));
	report("SysV shared memory", shmget(IPC_PRIVATE, 4096, 0600));
	report("SysV message queue", msgget(IPC_PRIVATE, 0600));
	report("POSIX message queue", mq_open("/check", O_CREAT | O_RDWR, 0600, NULL));
	report("2 MiB hugetlb mapping", (long)mmap(NULL, 2 << 20, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS |
							   MAP_HUGETLB | MAP_NORESERVE, -1, 0) == -1 ? -1 : 0);
	report("packet socket", socket(AF_PACKET, SOCK_RAW, 0));
	report("SCTP socket", socket(AF_INET, SOCK_STREAM, 132 /* IPPROTO_SCTP */));
	report("IPv6 socket", socket(AF_INET6, SOCK_STREAM, 0));
	return failures != 0;
}
