// Recorded steps and events.
#include "context.h"

extern "C" {

VI_API int32_t vi_event_record(vi_context* context, int32_t index) VI_TRY {
    VI_OPEN(context, "vi_event_record");
    VI_REQUIRE(context, index >= 0 && index < 64, "vi_event_record: index is %d, not in 0..63", index);
    // In a graph an event is a node of its own, recorded by each launch.
    VI_CUDA(context, "vi_event_record",
            cudaEventRecordWithFlags(context->events[index], context->stream,
                context->capturing ? cudaEventRecordExternal : cudaEventRecordDefault));
    context->event_recorded[index] = true;
    return VI_OK;
} VI_CATCH(context, "vi_event_record")

VI_API int32_t vi_event_elapsed(vi_context* context, uint8_t* out, int32_t first, int32_t last) VI_TRY {
    VI_OPEN(context, "vi_event_elapsed");
    VI_NOT_CAPTURED(context, "vi_event_elapsed");
    VI_POINTER(context, "vi_event_elapsed", out);
    for (const int32_t index : {first, last}) {
        VI_REQUIRE(context, index >= 0 && index < 64, "vi_event_elapsed: event is %d, not in 0..63", index);
        VI_REQUIRE(context, context->event_recorded[index], "vi_event_elapsed: event %d was never recorded", index);
    }
    VI_CUDA(context, "vi_event_elapsed", cudaEventSynchronize(context->events[last]));
    float milliseconds = 0;
    VI_CUDA(context, "vi_event_elapsed", cudaEventElapsedTime(&milliseconds, context->events[first], context->events[last]));
    std::memcpy(out, &milliseconds, sizeof milliseconds);
    return VI_OK;
} VI_CATCH(context, "vi_event_elapsed")

VI_API int32_t vi_graph_begin(vi_context* context) VI_TRY {
    VI_OPEN(context, "vi_graph_begin");
    VI_NOT_CAPTURED(context, "vi_graph_begin");
    // Relaxed: the first launch of a kernel may load its code, which the stricter modes refuse.
    VI_CUDA(context, "vi_graph_begin", cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeRelaxed));
    context->capturing = true;
    context->capture_status = VI_OK;
    return VI_OK;
} VI_CATCH(context, "vi_graph_begin")

VI_API int32_t vi_graph_end(vi_context* context, uint8_t* out) VI_TRY {
    VI_OPEN(context, "vi_graph_end");
    VI_REQUIRE(context, context->capturing, "vi_graph_end: no recording, call vi_graph_begin first");
    context->capturing = false;
    auto graph = std::make_unique<vi_graph>();
    const cudaError_t ended = cudaStreamEndCapture(context->stream, &graph->graph);
    if (context->capture_status != VI_OK || ended != cudaSuccess || !out) {
        if (graph->graph) cudaGraphDestroy(graph->graph);
        cudaGetLastError();
        if (context->capture_status != VI_OK) {
            context->error = context->capture_error;
            return context->capture_status;
        }
        VI_POINTER(context, "vi_graph_end", out);
        return context->fail_cuda(ended, "vi_graph_end");
    }
    const cudaError_t made = cudaGraphInstantiate(&graph->executable, graph->graph, 0);
    if (made != cudaSuccess) {
        cudaGraphDestroy(graph->graph);
        return context->fail_cuda(made, "vi_graph_end");
    }
    ++context->graphs;
    const vi_graph* handle = graph.release();
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context, "vi_graph_end")

VI_API int32_t vi_graph_launch(vi_context* context, vi_graph* graph) VI_TRY {
    VI_OPEN(context, "vi_graph_launch");
    VI_NOT_CAPTURED(context, "vi_graph_launch");
    VI_POINTER(context, "vi_graph_launch", graph);
    VI_CUDA(context, "vi_graph_launch", cudaGraphLaunch(graph->executable, context->stream));
    return VI_OK;
} VI_CATCH(context, "vi_graph_launch")

VI_API int32_t vi_graph_destroy(vi_context* context, vi_graph* graph) VI_TRY {
    VI_OPEN(context, "vi_graph_destroy");
    VI_NOT_CAPTURED(context, "vi_graph_destroy");
    if (!graph) return VI_OK;
    const cudaError_t waited = cudaStreamSynchronize(context->stream);
    const cudaError_t first = cudaGraphExecDestroy(graph->executable), second = cudaGraphDestroy(graph->graph);
    delete graph;
    if (--context->graphs == 0) {
        for (void* address : context->workspaces_retired) cudaFree(address);
        context->workspaces_retired.clear();
    }
    VI_CUDA(context, "vi_graph_destroy", waited);
    VI_CUDA(context, "vi_graph_destroy", first);
    VI_CUDA(context, "vi_graph_destroy", second);
    return VI_OK;
} VI_CATCH(context, "vi_graph_destroy")

} // extern "C"
