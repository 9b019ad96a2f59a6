/* Ranks meet in a file under the machine's folder; one mutex and one condition, shared by processes. */
#define _GNU_SOURCE
#include "comm.h"
#include "machine.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

static double seconds_of(const char *variable, double otherwise) {
    const char *text = getenv(variable);
    return text && *text ? atof(text) : otherwise;
}

/* As documented for HCCL_CONNECT_TIMEOUT and HCCL_EXEC_TIMEOUT; 0 of the latter means for ever. */
static double connect_timeout(void) { return seconds_of("HCCL_CONNECT_TIMEOUT", 120); }
static double exec_timeout(void) {
    double seconds = seconds_of("HCCL_EXEC_TIMEOUT", 1836);
    return seconds > 0 ? seconds : 1e9;
}

static struct timespec deadline_in(double seconds) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += (time_t)seconds;
    at.tv_nsec += (long)((seconds - (double)(time_t)seconds) * 1e9);
    if (at.tv_nsec >= 1000000000L) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000L;
    }
    return at;
}

/* A rank that died while it held the mutex must not hang the others. */
static void enter(Shared *shared) {
    if (pthread_mutex_lock(&shared->mutex) == EOWNERDEAD) pthread_mutex_consistent(&shared->mutex);
}

static int wait_until(Shared *shared, const struct timespec *deadline) {
    int code = pthread_cond_timedwait(&shared->changed, &shared->mutex, deadline);
    if (code == EOWNERDEAD) pthread_mutex_consistent(&shared->mutex);
    return code == ETIMEDOUT;
}

static void initialise(Shared *shared) {
    pthread_mutexattr_t mutex;
    pthread_mutexattr_init(&mutex);
    pthread_mutexattr_setpshared(&mutex, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&mutex, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_init(&shared->mutex, &mutex);
    pthread_condattr_t condition;
    pthread_condattr_init(&condition);
    pthread_condattr_setpshared(&condition, PTHREAD_PROCESS_SHARED);
    pthread_condattr_setclock(&condition, CLOCK_MONOTONIC);
    pthread_cond_init(&shared->changed, &condition);
    __atomic_store_n(&shared->ready, 1, __ATOMIC_RELEASE);
}

/* The file of a communicator; whoever creates it also initialises it. */
static Shared *map_file(const char *path, size_t bytes) {
    int mine = 1;
    int file = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (file < 0) {
        mine = 0;
        file = open(path, O_RDWR | O_CLOEXEC);
    }
    if (file < 0 || (mine && ftruncate(file, (off_t)bytes))) return NULL;
    for (int tries = 0; !mine && lseek(file, 0, SEEK_END) < (off_t)bytes && tries < 10000; tries++) usleep(1000);
    Shared *shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (shared == MAP_FAILED) return NULL;
    if (mine) initialise(shared);
    while (!__atomic_load_n(&shared->ready, __ATOMIC_ACQUIRE)) usleep(1000);
    return shared;
}

int comm_open(const char *name, uint32_t size, uint32_t rank, Comm **made) {
    char path[4400];
    if (size > MAX_RANKS || rank >= size) return HCCL_PARAMETER;
    size_t head = (sizeof(Shared) + 4095) / 4096 * 4096;
    size_t bytes = head + (size_t)size * WINDOW + (size_t)size * size * MAILBOX;
    snprintf(path, sizeof path, "%s/hccl-%s", machine_folder(), name);
    Shared *shared = map_file(path, bytes);
    if (!shared) return HCCL_PARAMETER;
    Comm *comm = calloc(1, sizeof *comm);
    *comm = (Comm){.size = size, .rank = rank, .shared = shared, .bytes = bytes};
    snprintf(comm->name, sizeof comm->name, "%s", name);
    comm->windows = (char *)shared + head;
    comm->letters = comm->windows + (size_t)size * WINDOW;
    struct timespec deadline = deadline_in(connect_timeout());
    int late = 0;
    enter(shared);
    shared->attached++;
    pthread_cond_broadcast(&shared->changed);
    while (shared->attached < size && !late) late = wait_until(shared, &deadline);
    pthread_mutex_unlock(&shared->mutex);
    unlink(path); /* all ranks have it mapped, or it is of no use: nothing is left behind */
    if (late) {
        munmap(shared, bytes);
        free(comm);
        return HCCL_TIMEOUT;
    }
    *made = comm;
    return HCCL_SUCCESS;
}

void comm_close(Comm *comm) {
    munmap(comm->shared, comm->bytes);
    free(comm);
}

char *window_of(Comm *comm, uint32_t rank) { return comm->windows + (size_t)rank * WINDOW; }

int comm_barrier(Comm *comm) {
    Shared *shared = comm->shared;
    if (comm->failed) return HCCL_TIMEOUT;
    struct timespec deadline = deadline_in(exec_timeout());
    int late = 0;
    enter(shared);
    uint64_t generation = shared->generation;
    if (++shared->arrived == comm->size) {
        shared->arrived = 0;
        shared->generation++;
        pthread_cond_broadcast(&shared->changed);
    }
    while (shared->generation == generation && !late) late = wait_until(shared, &deadline);
    pthread_mutex_unlock(&shared->mutex);
    comm->failed = late;
    return late ? HCCL_TIMEOUT : HCCL_SUCCESS;
}

static Intent *intents_of(Comm *comm) { return comm->shared->intents[comm->calls % 2]; }

int comm_begin(Comm *comm, const Intent *intent) {
    comm->calls++;
    Intent *intents = intents_of(comm);
    intents[comm->rank] = *intent;
    int code = comm_barrier(comm);
    if (code) return code;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        const Intent *other = &intents[rank];
        /* different calls wait for each other for ever on the device */
        if (strcmp(other->call, intent->call)) {
            double seconds = exec_timeout();
            usleep((useconds_t)((seconds < 3600 ? seconds : 3600) * 1e6));
            comm->failed = 1;
            return HCCL_TIMEOUT;
        }
        if (other->count != intent->count || other->type != intent->type || other->root != intent->root ||
            other->operation != intent->operation) {
            return HCCL_PARAMETER;
        }
    }
    return HCCL_SUCCESS;
}

uint64_t comm_most_rounds(Comm *comm) {
    uint64_t most = 0;
    for (uint32_t rank = 0; rank < comm->size; rank++) {
        uint64_t rounds = intents_of(comm)[rank].rounds;
        if (rounds > most) most = rounds;
    }
    return most;
}

static char *letter(Comm *comm, uint32_t from, uint32_t to) {
    return comm->letters + ((size_t)from * comm->size + to) * MAILBOX;
}

/* A mailbox is a ring: copies up to its end, then from its start. */
static size_t move(Comm *comm, uint32_t from, uint32_t to, char *bytes, size_t length, int push) {
    Shared *shared = comm->shared;
    Mailbox *box = &shared->mailboxes[from][to];
    enter(shared);
    size_t filled = box->sent - box->received;
    size_t room = push ? MAILBOX - filled : filled;
    size_t at = (push ? box->sent : box->received) % MAILBOX;
    size_t count = length < room ? length : room;
    if (count > MAILBOX - at) count = MAILBOX - at;
    char *place = letter(comm, from, to) + at;
    if (push) memcpy(place, bytes, count);
    else memcpy(bytes, place, count);
    *(push ? &box->sent : &box->received) += count;
    if (count) pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->mutex);
    return count;
}

size_t comm_push(Comm *comm, uint32_t to, const char *bytes, size_t length) {
    return move(comm, comm->rank, to, (char *)bytes, length, 1);
}

size_t comm_pull(Comm *comm, uint32_t from, char *bytes, size_t length) {
    return move(comm, from, comm->rank, bytes, length, 0);
}

int comm_pause(Comm *comm, double *waited) {
    const double nap = 0.02; /* a change may have come before the wait began: look again soon */
    struct timespec deadline = deadline_in(nap);
    enter(comm->shared);
    wait_until(comm->shared, &deadline);
    pthread_mutex_unlock(&comm->shared->mutex);
    *waited += nap;
    return *waited > exec_timeout() ? HCCL_TIMEOUT : HCCL_SUCCESS;
}
