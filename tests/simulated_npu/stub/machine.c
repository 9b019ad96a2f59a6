/* Cards and their memory. Processes share one table in a file, so that a card's memory is one pool. */
#define _GNU_SOURCE
#include "machine.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static Process *table;
static Process *own;
static pid_t owner; /* the process that `own` belongs to: differs after a fork */
static int table_file = -1;

int machine_cards(void) {
    const char *text = getenv("NPUSIM_DEVICE_COUNT");
    int count = text ? atoi(text) : 8;
    return count < 0 ? 0 : count > MAX_CARDS ? MAX_CARDS : count;
}

/* As the runtime reads ASCEND_RT_VISIBLE_DEVICES: it stops at the first entry that is no card. */
int machine_visible(int *physical) {
    int cards = machine_cards(), found = 0;
    const char *at = getenv("ASCEND_RT_VISIBLE_DEVICES");
    if (!at) {
        for (int card = 0; card < cards; card++) {
            if (physical) physical[card] = card;
        }
        return cards;
    }
    while (*at && found < MAX_CARDS) {
        char *end;
        long card = strtol(at, &end, 10);
        if (end == at || card < 0 || card >= cards) break;
        if (physical) physical[found] = (int)card;
        found++;
        if (*end != ',') break;
        at = end + 1;
    }
    return found;
}

int machine_physical(int logical) {
    int physical[MAX_CARDS];
    int count = machine_visible(physical);
    return logical >= 0 && logical < count ? physical[logical] : -1;
}

size_t machine_capacity(void) {
    const char *text = getenv("NPUSIM_MEMORY_GB");
    return (size_t)((text ? atof(text) : 64.0) * (double)(1ull << 30));
}

const char *machine_folder(void) {
    static char folder[4096];
    if (!folder[0]) {
        const char *given = getenv("NPUSIM_STATE");
        if (given) snprintf(folder, sizeof folder, "%s", given);
        else snprintf(folder, sizeof folder, "/dev/shm/npusim-%u", (unsigned)getuid());
        mkdir(folder, 0700);
    }
    return folder;
}

static uint64_t start_time(pid_t pid) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(text, 1, sizeof text - 1, file);
    fclose(file);
    text[length] = 0;
    /* the name is in brackets and may hold blanks; the start time is the 20th field after it */
    char *at = strrchr(text, ')');
    for (int field = 0; at && field < 20; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

static int is_alive(const Process *process) {
    return process->pid && (kill(process->pid, 0) == 0 || errno == EPERM) &&
           start_time(process->pid) == process->started;
}

static void open_table(void) {
    char path[4200];
    size_t bytes = sizeof(Process) * MAX_PROCESSES;
    snprintf(path, sizeof path, "%s/processes", machine_folder());
    table_file = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (table_file < 0 || ftruncate(table_file, (off_t)bytes)) {
        fprintf(stderr, "npusim: cannot use %s: %s\n", path, strerror(errno));
        abort();
    }
    table = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, table_file, 0);
    if (table == MAP_FAILED) abort();
}

/* The row of this process, taken from a dead process or an unused row. Called with the table locked. */
static Process *own_row(void) {
    if (own && owner == getpid()) return own;
    own = NULL;
    for (int row = 0; row < MAX_PROCESSES && !own; row++) {
        if (!is_alive(&table[row])) own = &table[row];
    }
    if (!own) abort();
    memset(own, 0, sizeof *own);
    owner = own->pid = getpid();
    own->started = start_time(own->pid);
    FILE *file = fopen("/proc/self/comm", "r");
    if (file) {
        if (fgets(own->name, sizeof own->name, file)) own->name[strcspn(own->name, "\n")] = 0;
        fclose(file);
    }
    return own;
}

static pthread_mutex_t threads = PTHREAD_MUTEX_INITIALIZER;

/* A record lock keeps out other processes, forked children too; the mutex keeps out other threads. */
static void lock(void) {
    struct flock whole = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    pthread_mutex_lock(&threads);
    if (table_file < 0) open_table();
    while (fcntl(table_file, F_SETLKW, &whole) && errno == EINTR) continue;
}

static void unlock(void) {
    struct flock whole = {.l_type = F_UNLCK, .l_whence = SEEK_SET};
    fcntl(table_file, F_SETLK, &whole);
    pthread_mutex_unlock(&threads);
}

static size_t used_now(int physical) {
    size_t bytes = 0;
    for (int row = 0; row < MAX_PROCESSES; row++) {
        if (table[row].used[physical] && is_alive(&table[row])) bytes += table[row].used[physical];
    }
    int busy = fault_says("busy", physical); /* another container holds the card: all but 1 GiB is gone */
    return busy ? machine_capacity() - (1ull << 30) + bytes : bytes;
}

size_t machine_used(int physical) {
    lock();
    size_t bytes = used_now(physical);
    unlock();
    return bytes;
}

int machine_take(int physical, size_t bytes) {
    lock();
    Process *process = own_row();
    int code = used_now(physical) + bytes > machine_capacity() ? OUT_OF_MEMORY : OK;
    if (code == OK) process->used[physical] += bytes;
    unlock();
    return code;
}

void machine_give(int physical, size_t bytes) {
    lock();
    Process *process = own_row();
    /* a forked child frees what its parent took: the parent's row is not ours to change */
    process->used[physical] -= process->used[physical] < bytes ? process->used[physical] : bytes;
    unlock();
}
