/* Counts the file-system events of a process below one directory, and kills the process at one of them.
 *
 * An event is a system call that changes what a later process finds there: create (an open that may make or empty
 * a file), write, truncate, rename, link, unlink, mkdir, rmdir, fsync; in any thread, whether or not it succeeds.
 * The kernel itself reports them (seccomp, SIGSYS): functions put in front of those of libc were seen to miss the
 * rename in safetensors, whose Rust makes its system calls without libc. Not seen: writes through a shared mapping.
 *
 * Either a process loads this and calls kill_at_arm(), or it is preloaded (LD_PRELOAD) and reads
 *
 *   KILL_UNDER  the directory; nothing happens without it
 *   KILL_AT     the number of the event to die at, from 1; 0 or unset: none
 *   KILL_HOW    "before" it (the default), "after" it, or "halfway": a write puts half of its bytes first
 *   KILL_LOG    a file outside the directory that gets one line for each event: number, call, path
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <ucontext.h>
#include <unistd.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
#define ARGUMENTS(c)                                                                                                   \
    {(c)->gregs[REG_RDI], (c)->gregs[REG_RSI], (c)->gregs[REG_RDX], (c)->gregs[REG_R10], (c)->gregs[REG_R8]}
#define RESULT(c) (c)->gregs[REG_RAX]
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
#define ARGUMENTS(c)                                                                                                   \
    {(long)(c)->regs[0], (long)(c)->regs[1], (long)(c)->regs[2], (long)(c)->regs[3], (long)(c)->regs[4]}
#define RESULT(c) (c)->regs[0]
#else
#error "kill_at knows the registers of x86-64 and aarch64 only"
#endif

/* As a sixth argument, which none of these calls has, it marks a call that is let through. */
#define PASS 0x656d746bL

enum how { BEFORE, AFTER, HALFWAY };

/* Where a call has the path: its first argument, a directory and a name at some argument, or an open file. */
enum where { PATH, AT, FD };

static const struct call {
    int number;
    const char *name;
    enum where where;
    int argument;
} calls[] = {
#ifdef SYS_creat
    {SYS_creat, "create", PATH, 0},   {SYS_mkdir, "mkdir", PATH, 0},   {SYS_rename, "rename", PATH, 0},
    {SYS_unlink, "unlink", PATH, 0},  {SYS_rmdir, "rmdir", PATH, 0},   {SYS_link, "link", PATH, 1},
    {SYS_symlink, "link", PATH, 1},
#endif
#ifdef SYS_open
    {SYS_open, "open", PATH, 0},
#endif
#ifdef SYS_renameat
    {SYS_renameat, "rename", AT, 0},
#endif
    {SYS_openat, "open", AT, 0},    {SYS_mkdirat, "mkdir", AT, 0},   {SYS_renameat2, "rename", AT, 0},
    {SYS_unlinkat, "unlink", AT, 0},  {SYS_linkat, "link", AT, 2},     {SYS_symlinkat, "link", AT, 1},
    {SYS_write, "write", FD, 0},      {SYS_pwrite64, "write", FD, 0},  {SYS_writev, "write", FD, 0},
    {SYS_pwritev, "write", FD, 0},    {SYS_sendfile, "write", FD, 0},  {SYS_truncate, "truncate", PATH, 0},
    {SYS_ftruncate, "truncate", FD, 0}, {SYS_fallocate, "truncate", FD, 0},
    {SYS_fsync, "fsync", FD, 0},      {SYS_fdatasync, "fsync", FD, 0},
};
#define CALLS (sizeof calls / sizeof *calls)

static char under[PATH_MAX];
static long fatal;
static enum how how;
static int log_fd = -1;
static long count;

/* The system call itself, with the mark; a negative errno where it fails. */
static long pass(long number, const long *a) {
    long result = syscall(number, a[0], a[1], a[2], a[3], a[4], PASS);
    return result == -1 ? -errno : result;
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

static void path_of_fd(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = '\0';
}

/* The absolute path that `call` is about. */
static void path_of_call(const struct call *call, const long *a, char *path) {
    if (call->where == FD) {
        path_of_fd((int)a[call->argument], path);
        return;
    }
    int directory = call->where == AT ? (int)a[call->argument] : AT_FDCWD;
    const char *name = (const char *)a[call->argument + (call->where == AT)];
    path[0] = '\0';
    if (name[0] != '/') {
        if (directory != AT_FDCWD)
            path_of_fd(directory, path);
        else if (getcwd(path, PATH_MAX) == NULL)
            path[0] = '\0';
        strncat(path, "/", PATH_MAX - strlen(path) - 1);
    }
    strncat(path, name, PATH_MAX - strlen(path) - 1);
}

static int is_under(const char *path) {
    size_t length = strlen(under);
    return strncmp(path, under, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

static const char *event_name(const struct call *call, const long *a) {
    if (call->number == SYS_unlinkat && (a[2] & AT_REMOVEDIR))
        return "rmdir";
    return strcmp(call->name, "open") == 0 ? "create" : call->name;
}

static void put_half(long number, const long *a) {
    long half[] = {a[0], a[1], a[2], a[3], a[4]};
    struct iovec parts[64];
    if (number == SYS_writev || number == SYS_pwritev) {
        half[2] = a[2] < 64 ? a[2] : 64;
        memcpy(parts, (void *)a[1], (size_t)half[2] * sizeof *parts);
        parts[half[2] - 1].iov_len /= 2;
        half[1] = (long)parts;
    } else if (number == SYS_sendfile) {
        half[3] /= 2;
    } else {
        half[2] /= 2;
    }
    pass(number, half);
}

/* Does what the program asked for, after counting it; or dies. */
static long do_call(long number, const long *a) {
    char path[PATH_MAX], line[PATH_MAX + 64];
    const struct call *call = calls;
    while (call->number != number)
        call++;
    path_of_call(call, a, path);
    if (!is_under(path))
        return pass(number, a);
    const char *name = event_name(call, a);
    long event = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    int length = snprintf(line, sizeof line, "%ld %s %s\n", event, name, path);
    if (log_fd >= 0)
        pass(SYS_write, (long[]){log_fd, (long)line, length, 0, 0});
    if (event != fatal)
        return pass(number, a);
    if (how == HALFWAY && strcmp(name, "write") == 0)
        put_half(number, a);
    if (how == AFTER)
        pass(number, a);
    die();
    return 0;
}

static void on_call(int signal_number, siginfo_t *info, void *context) {
    (void)signal_number;
    mcontext_t *c = &((ucontext_t *)context)->uc_mcontext;
    long a[] = ARGUMENTS(c);
    int errno_before = errno;
    RESULT(c) = do_call(info->si_syscall, a);
    errno = errno_before;
}

/* Lets the kernel ask on_call() instead of doing the calls. */
static int trap_calls(void) {
    struct sock_filter program[2 * CALLS + 32], *next = program;
#define LOAD(field) *next++ = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF(test, value, then, otherwise) *next++ = (struct sock_filter)BPF_JUMP(BPF_JMP | test | BPF_K, value, then, otherwise)
#define RETURN(what) *next++ = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, what)
    LOAD(arch);
    IF(BPF_JEQ, ARCH, 1, 0);
    RETURN(SECCOMP_RET_ALLOW);
    LOAD(args[5]);
    IF(BPF_JEQ, PASS, 0, 1);
    RETURN(SECCOMP_RET_ALLOW);
    LOAD(nr);
    for (size_t i = 0; i < CALLS; i++) {
        if (strcmp(calls[i].name, "open") == 0)
            continue;
        IF(BPF_JEQ, (unsigned)calls[i].number, 0, 1);
        RETURN(SECCOMP_RET_TRAP);
    }
    /* An open is an event only if it may make or empty a file. */
#define OPEN_IF(number, flags)                                                                                         \
    IF(BPF_JEQ, number, 0, 4);                                                                                         \
    LOAD(flags);                                                                                                       \
    IF(BPF_JSET, O_CREAT | O_TRUNC, 0, 1);                                                                             \
    RETURN(SECCOMP_RET_TRAP);                                                                                          \
    RETURN(SECCOMP_RET_ALLOW)
    OPEN_IF(SYS_openat, args[2]);
#ifdef SYS_open
    OPEN_IF(SYS_open, args[1]);
#endif
    RETURN(SECCOMP_RET_ALLOW);
    struct sock_fprog filter = {.len = (unsigned short)(next - program), .filter = program};
    return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
           syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter) == 0;
}

/* Counts from now on; 0 where the kernel does not allow it. To be called once in a process, and not undone. */
int kill_at_arm(const char *directory, long at, const char *when, const char *log) {
    snprintf(under, sizeof under, "%s", directory);
    fatal = at;
    how = strcmp(when, "after") == 0 ? AFTER : strcmp(when, "halfway") == 0 ? HALFWAY : BEFORE;
    /* Before anything else: a program that one of these started begins with the traps and without the handler. */
    struct sigaction action = {.sa_sigaction = on_call, .sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART};
    sigaction(SIGSYS, &action, NULL);
    if (log != NULL)
        log_fd = open(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    return trap_calls();
}

__attribute__((constructor)) static void arm_from_environment(void) {
    const char *directory = getenv("KILL_UNDER"), *at = getenv("KILL_AT"), *when = getenv("KILL_HOW");
    if (directory != NULL && !kill_at_arm(directory, at ? atol(at) : 0, when ? when : "before", getenv("KILL_LOG")))
        _exit(125);
}
