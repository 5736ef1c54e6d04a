/* SPDX-License-Identifier: Apache-2.0 */
/* diffusers 0.42.1, SINGLE_FILE_LOADABLE_CLASSES, without the autoencoders: those are
 * kept as they are in every view. In byte order (tools/gen_loader_lists.py). */
#include <stdlib.h>
#include <string.h>

#include "view/gguf.h"

static const char *const classes[] = {
    "AuraFlowTransformer2DModel",
    "ChromaTransformer2DModel",
    "ChronoEditTransformer3DModel",
    "ControlNetModel",
    "CosmosTransformer3DModel",
    "ErnieImageTransformer2DModel",
    "Flux2Transformer2DModel",
    "Flux3Transformer2DModel",
    "FluxTransformer2DModel",
    "HiDreamImageTransformer2DModel",
    "HunyuanVideoTransformer3DModel",
    "Krea2Transformer2DModel",
    "LTX2VideoTransformer3DModel",
    "LTXVideoTransformer3DModel",
    "Lumina2Transformer2DModel",
    "MiniMaxH3Transformer3DModel",
    "MochiTransformer3DModel",
    "MotifVideoTransformer3DModel",
    "MotionAdapter",
    "QwenImage21Transformer2DModel",
    "QwenImageTransformer2DModel",
    "SD3Transformer2DModel",
    "SanaTransformer2DModel",
    "SkyReelsV2Transformer3DModel",
    "SparseControlNetModel",
    "StableCascadeUNet",
    "UNet2DConditionModel",
    "WanAnimate2Transformer3DModel",
    "WanAnimateTransformer3DModel",
    "WanTransformer3DModel",
    "WanVACETransformer3DModel",
    "ZImageControlNetModel",
    "ZImageTransformer2DModel",
};

static int compare(const void *name, const void *item)
{
    return strcmp(name, *(const char *const *)item);
}

bool qf_gguf_is_diffusers_class(const char *name)
{
    return bsearch(name, classes, sizeof classes / sizeof *classes, sizeof *classes,
                   compare) != NULL;
}
