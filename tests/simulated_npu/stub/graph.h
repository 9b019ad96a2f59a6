/* Graphs, as the rest of the runtime and the operators see them. */
#ifndef NPUSIM_GRAPH_H
#define NPUSIM_GRAPH_H
#ifdef __cplusplus
extern "C" {
#endif
#include <stddef.h>

typedef struct Graph Graph;
typedef enum { RUN, DROP } Action;
/* Work of a graph: is done, or frees what it keeps. Returns OK or what the execution of the graph must return. */
typedef int (*Work)(void *data, Action action);

Graph *graph_of(void *stream);                                     /* that the stream's work goes to, or NULL */
void graph_add(Graph *graph, Work work, void *data, const char *name); /* the name must live as long as the process */
void graph_keep(Graph *graph, void *at, size_t bytes);             /* before work overwrites this */
void graph_add_move(Graph *graph, void *to, const void *from, size_t bytes, int value);
void graph_join(void *stream, void *event);                        /* the stream waits for the event */
int graph_refuses_wait(void *stream, const char *call);            /* NULL: a wait for the whole card */
#ifdef __cplusplus
}
#endif
#endif
