/* Graphs: work that is given to streams while they are captured is kept, and done again when the graph is executed.
 *
 * The device would not do the work while it is captured. Here it is done, as shapes and whatever follows depend on it;
 * what it overwrote is put back when the capture ends. */
#define _GNU_SOURCE
#include "graph.h"
#include "machine.h"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STATUS_NONE, STATUS_ACTIVE, STATUS_INVALIDATED };

typedef struct {
    Work work;
    void *data;
    const char *name;
} Node;

typedef struct {
    Node *nodes;
    size_t count;
} List;

typedef struct Saved {
    char *at, *copy;
    size_t bytes;
    struct Saved *next;
} Saved;

struct Graph {
    uint32_t id;
    int invalid;
    Token *origin; /* the stream on which the capture began */
    List list, *group; /* the group that is open, or NULL */
    Saved *saved;
    struct Graph *next; /* among those that are being captured */
};

static Graph *capturing;
static uint32_t last_id;
static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;

static Graph *find(uint32_t id) {
    pthread_mutex_lock(&guard);
    Graph *graph = id ? capturing : NULL;
    while (graph && graph->id != id) graph = graph->next;
    pthread_mutex_unlock(&guard);
    return graph;
}

static Graph *create(Token *origin) {
    Graph *graph = calloc(1, sizeof *graph);
    pthread_mutex_lock(&guard);
    graph->id = ++last_id;
    graph->origin = origin;
    graph->next = capturing;
    capturing = graph;
    pthread_mutex_unlock(&guard);
    return graph;
}

/* The end of a capture: memory is as it was before. */
static void finish(Graph *graph) {
    pthread_mutex_lock(&guard);
    Graph **at = &capturing;
    while (*at != graph) at = &(*at)->next;
    *at = graph->next;
    pthread_mutex_unlock(&guard);
    while (graph->saved) {
        Saved *saved = graph->saved;
        memcpy(saved->at, saved->copy, saved->bytes);
        graph->saved = saved->next;
        free(saved->copy);
        free(saved);
    }
}

static void drop(List *list) {
    for (size_t i = 0; i < list->count; i++) list->nodes[i].work(list->nodes[i].data, DROP);
    free(list->nodes);
    *list = (List){0};
}

static int run(const List *list) {
    for (size_t i = 0; i < list->count; i++) {
        int code = list->nodes[i].work(list->nodes[i].data, RUN);
        if (code) return code;
    }
    return OK;
}

static void append(List *list, Work work, void *data, const char *name) {
    list->nodes = realloc(list->nodes, (list->count + 1) * sizeof *list->nodes);
    list->nodes[list->count++] = (Node){work, data, name};
}

Graph *graph_of(void *stream) {
    Token *token = stream;
    return token ? find(token->update ? token->update : token->capture) : NULL;
}

void graph_join(void *stream, void *event) {
    uint32_t id = event ? ((Token *)event)->capture : 0;
    if (stream && find(id)) ((Token *)stream)->capture = id;
}

void graph_add(Graph *graph, Work work, void *data, const char *name) {
    append(graph->group ? graph->group : &graph->list, work, data, name);
}

void graph_keep(Graph *graph, void *at, size_t bytes) {
    for (Saved *saved = graph->saved; saved; saved = saved->next) {
        if (saved->at == at && saved->bytes >= bytes) return;
    }
    Saved *saved = malloc(sizeof *saved);
    *saved = (Saved){at, malloc(bytes), bytes, graph->saved};
    memcpy(saved->copy, at, bytes);
    graph->saved = saved;
}

int graph_refuses_wait(void *stream, const char *call) {
    pthread_mutex_lock(&guard);
    Graph *any = capturing;
    pthread_mutex_unlock(&guard);
    Graph *graph = stream ? graph_of(stream) : any;
    if (!graph) return OK;
    if (!stream) graph->invalid = 1; /* to wait for a captured stream is refused, and the capture goes on */
    return fault_set(stream ? STREAM_CAPTURED : CAPTURE_MODE_NOT_SUPPORTED, call);
}

/* ---- work of the runtime itself ---- */

typedef struct {
    void *to;
    const void *from; /* NULL: fill with the value */
    size_t bytes;
    int value;
} Move;

static int move(void *data, Action action) {
    Move *what = data;
    if (action == DROP) free(what);
    else if (what->from) memmove(what->to, what->from, what->bytes);
    else memset(what->to, what->value, what->bytes);
    return OK;
}

void graph_add_move(Graph *graph, void *to, const void *from, size_t bytes, int value) {
    Move *what = malloc(sizeof *what);
    *what = (Move){to, from, bytes, value};
    graph_keep(graph, to, bytes);
    graph_add(graph, move, what, from ? "memcpy" : "memset");
}

typedef struct {
    void (*function)(void *);
    void *argument;
} Callback;

static int call_back(void *data, Action action) {
    Callback *callback = data;
    if (action == DROP) free(callback);
    else callback->function(callback->argument);
    return OK;
}

int aclrtLaunchHostFunc(void *stream, void (*function)(void *), void *argument) {
    Graph *graph = graph_of(stream);
    if (!graph) {
        function(argument);
        return OK;
    }
    Callback *callback = malloc(sizeof *callback);
    *callback = (Callback){function, argument};
    graph_add(graph, call_back, callback, "callback");
    return OK;
}

int aclrtLaunchCallback(void (*function)(void *), void *argument, int blocks, void *stream) {
    return aclrtLaunchHostFunc(stream, function, argument);
}

/* ---- capture ---- */

int aclmdlRIDestroy(void *model) {
    drop(&((Graph *)model)->list);
    free(model);
    return OK;
}

int aclmdlRICaptureBegin(void *stream, int mode) {
    Token *token = stream;
    if (graph_of(stream)) return fault_set(STREAM_CAPTURED, __func__);
    token->capture = create(token)->id;
    return OK;
}

int aclmdlRICaptureGetInfo(void *stream, int *status, void **model) {
    Graph *graph = stream ? find(((Token *)stream)->capture) : NULL;
    *status = !graph ? STATUS_NONE : graph->invalid ? STATUS_INVALIDATED : STATUS_ACTIVE;
    *model = graph;
    return OK;
}

int aclmdlRICaptureEnd(void *stream, void **model) {
    Graph *graph = stream ? find(((Token *)stream)->capture) : NULL;
    if (!graph) return fault_set(STREAM_NOT_CAPTURED, __func__);
    if (graph->origin != stream) return fault_set(CAPTURE_UNMATCHED, __func__);
    finish(graph);
    if (graph->invalid) {
        aclmdlRIDestroy(graph);
        return fault_set(CAPTURE_INVALIDATED, __func__);
    }
    *model = graph;
    return OK;
}

int aclmdlRIGetId(void *model, uint32_t *id) {
    *id = ((Graph *)model)->id;
    return OK;
}

/* ---- groups, whose work can be replaced ---- */

static int run_group(void *data, Action action) {
    if (action == RUN) return run(data);
    drop(data);
    free(data);
    return OK;
}

int aclmdlRICaptureTaskGrpBegin(void *stream) {
    Graph *graph = graph_of(stream);
    if (!graph) return fault_set(STREAM_NOT_CAPTURED, __func__);
    List *group = calloc(1, sizeof *group);
    append(&graph->list, run_group, group, "group");
    graph->group = group;
    return OK;
}

int aclmdlRICaptureTaskGrpEnd(void *stream, void **handle) {
    Graph *graph = graph_of(stream);
    if (!graph || !graph->group) return fault_set(STREAM_NOT_CAPTURED, __func__);
    *handle = graph->group;
    graph->group = NULL;
    return OK;
}

int aclmdlRICaptureTaskUpdateBegin(void *stream, void *handle) {
    Token *token = stream;
    if (graph_of(stream)) return fault_set(STREAM_CAPTURED, __func__);
    Graph *graph = create(token);
    drop(handle);
    graph->group = handle;
    token->update = graph->id;
    return OK;
}

int aclmdlRICaptureTaskUpdateEnd(void *stream) {
    Token *token = stream;
    Graph *graph = find(token->update);
    if (!graph) return fault_set(STREAM_NOT_CAPTURED, __func__);
    finish(graph);
    free(graph);
    token->update = 0;
    return OK;
}

/* ---- graphs ---- */

int aclmdlRIExecuteAsync(void *model, void *stream) {
    int code = fault_check(__func__, machine_current());
    return code ? code : run(&((Graph *)model)->list);
}

static void print(FILE *file, const List *list, const char **separator) {
    for (size_t i = 0; i < list->count; i++) {
        if (list->nodes[i].work == run_group) {
            print(file, list->nodes[i].data, separator);
            continue;
        }
        fprintf(file, "%s{\"name\": \"%s\", \"ph\": \"X\"}", *separator, list->nodes[i].name);
        *separator = ",\n";
    }
}

/* The work in its order, in the manner of a trace. */
int aclmdlRIDebugJsonPrint(void *model, const char *path, uint32_t flags) {
    FILE *file = fopen(path, "w");
    if (!file) return fault_set(INVALID_PARAM, __func__);
    const char *separator = "";
    fprintf(file, "[");
    print(file, &((Graph *)model)->list, &separator);
    fprintf(file, "]\n");
    fclose(file);
    return OK;
}
