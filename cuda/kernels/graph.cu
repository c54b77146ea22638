// Recorded steps and events.
#include "context.h"

extern "C" {

VI_API int32_t vi_event_record(vi_context* context, int32_t index) VI_TRY {
    VI_OPEN(context);
    VI_CHECK(check_event(context, __func__, index));
    // In a graph an event is a node of its own, recorded by each launch.
    VI_CUDA(context, __func__,
            cudaEventRecordWithFlags(context->events[index], context->stream,
                context->recording ? cudaEventRecordExternal : cudaEventRecordDefault));
    context->event_recorded[index] = true;
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_event_elapsed(vi_context* context, uint8_t* out, int32_t first, int32_t last) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_POINTER(context, __func__, out);
    for (const int32_t index : {first, last}) {
        VI_CHECK(check_event(context, __func__, index));
        VI_REQUIRE(context, context->event_recorded[index], "%s: event %d was never recorded", __func__, index);
    }
    VI_CUDA(context, __func__, cudaEventSynchronize(context->events[last]));
    float milliseconds = 0;
    VI_CUDA(context, __func__, cudaEventElapsedTime(&milliseconds, context->events[first], context->events[last]));
    std::memcpy(out, &milliseconds, sizeof milliseconds);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_graph_begin(vi_context* context) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    // Relaxed: the first launch of a kernel may load its code, which the stricter modes refuse.
    VI_CUDA(context, __func__, cudaStreamBeginCapture(context->stream, cudaStreamCaptureModeRelaxed));
    context->recording = true;
    context->recording_status = VI_OK;
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_graph_end(vi_context* context, uint8_t* out) VI_TRY {
    VI_OPEN(context);
    VI_REQUIRE(context, context->recording, "%s: no recording, call vi_graph_begin first", __func__);
    context->recording = false;
    auto graph = std::make_unique<vi_graph>();
    const cudaError_t ended = cudaStreamEndCapture(context->stream, &graph->graph);
    if (context->recording_status != VI_OK || ended != cudaSuccess || !out) {
        if (graph->graph) cudaGraphDestroy(graph->graph);
        cudaGetLastError();
        if (context->recording_status != VI_OK) {
            context->error = context->recording_error;
            return context->recording_status;
        }
        VI_POINTER(context, __func__, out);
        return context->fail_cuda(ended, __func__);
    }
    const cudaError_t made = cudaGraphInstantiate(&graph->executable, graph->graph, 0);
    if (made != cudaSuccess) {
        cudaGraphDestroy(graph->graph);
        return context->fail_cuda(made, __func__);
    }
    ++context->graphs;
    const vi_graph* handle = graph.release();
    std::memcpy(out, &handle, sizeof handle);
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_graph_launch(vi_context* context, vi_graph* graph) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    VI_POINTER(context, __func__, graph);
    VI_CUDA(context, __func__, cudaGraphLaunch(graph->executable, context->stream));
    return VI_OK;
} VI_CATCH(context)

VI_API int32_t vi_graph_destroy(vi_context* context, vi_graph* graph) VI_TRY {
    VI_OPEN(context);
    VI_NOT_RECORDED(context, __func__);
    if (!graph) return VI_OK;
    const cudaError_t waited = cudaStreamSynchronize(context->stream);
    const cudaError_t first = cudaGraphExecDestroy(graph->executable), second = cudaGraphDestroy(graph->graph);
    delete graph;
    if (--context->graphs == 0) {
        for (void* address : context->workspaces_retired) cudaFree(address);
        context->workspaces_retired.clear();
    }
    VI_CUDA(context, __func__, waited);
    VI_CUDA(context, __func__, first);
    VI_CUDA(context, __func__, second);
    return VI_OK;
} VI_CATCH(context)

} // extern "C"
