"""Security: ComfyUI's node classes that public graphs may have.

A class is listed because its source in ComfyUI 0.3.64 and 0.33 opens no file, connection or program
that a text input names, or only what its list says. Left out on purpose are nodes that read a file
which their widget names, a camera or a microphone; that call a paid service; that save models or
datasets; that train; and 3D. A class of a newer ComfyUI or of another pack is on no list, so it is
refused.
"""

FREE_NODES = frozenset(
    name
    for names in (
        # nodes.py
        "CLIPSetLastLayer, CLIPTextEncode, CLIPVisionEncode, ConditioningAverage, "
        "ConditioningCombine, ConditioningConcat, ConditioningMultiply, ConditioningSetArea, "
        "ConditioningSetAreaPercentage, ConditioningSetAreaStrength, ConditioningSetMask, "
        "ConditioningSetTimestepRange, ConditioningZeroOut, ControlNetApply, "
        "ControlNetApplyAdvanced, EmptyImage, EmptyLatentImage, GLIGENTextBoxApply, "
        "ImageBatch, ImageInvert, ImagePadForOutpaint, ImageScale, ImageScaleBy, "
        "InpaintModelConditioning, KSampler, KSamplerAdvanced, LatentBlend, LatentComposite, "
        "LatentCrop, LatentFlip, LatentFromBatch, LatentRotate, LatentUpscale, "
        "LatentUpscaleBy, RepeatLatentBatch, SetLatentNoiseMask, StyleModelApply, "
        "unCLIPConditioning, VAEDecode, VAEDecodeTiled, VAEEncode, VAEEncodeForInpaint, "
        "VAEEncodeTiled",
        # comfy_extras/nodes_ace.py
        "EmptyAceStep1.5LatentAudio, EmptyAceStepLatentAudio, ReferenceTimbreAudio, "
        "TextEncodeAceStepAudio, TextEncodeAceStepAudio1.5",
        # comfy_extras/nodes_advanced_samplers.py
        "SamplerEulerCFGpp, SamplerLCM, SamplerLCMUpscale",
        # comfy_extras/nodes_align_your_steps.py
        "AlignYourStepsScheduler",
        # comfy_extras/nodes_apg.py
        "APG",
        # comfy_extras/nodes_ar_video.py
        "ARVideoI2V, EmptyARVideoLatent, SamplerARVideo",
        # comfy_extras/nodes_attention_multiply.py
        "CLIPAttentionMultiply, UNetCrossAttentionMultiply, UNetSelfAttentionMultiply, "
        "UNetTemporalAttentionMultiply",
        # comfy_extras/nodes_audio.py
        "AudioAdjustVolume, AudioConcat, AudioEqualizer3Band, AudioMerge, "
        "ConditioningStableAudio, EmptyAudio, EmptyLatentAudio, JoinAudioChannels, "
        "SplitAudioChannels, TrimAudioDuration, VAEDecodeAudio, VAEDecodeAudioTiled, "
        "VAEEncodeAudio",
        # comfy_extras/nodes_audio_encoder.py
        "AudioEncoderEncode",
        # comfy_extras/nodes_bernini.py
        "BerniniConditioning",
        # comfy_extras/nodes_bg_removal.py
        "RemoveBackground",
        # comfy_extras/nodes_boogu.py
        "TextEncodeBooguEdit",
        # comfy_extras/nodes_bounding_boxes.py
        "CreateBoundingBoxes",
        # comfy_extras/nodes_canny.py
        "Canny",
        # comfy_extras/nodes_cfg.py
        "CFGNorm, CFGZeroStar",
        # comfy_extras/nodes_chroma_radiance.py
        "ChromaRadianceOptions, EmptyChromaRadianceLatentImage",
        # comfy_extras/nodes_clip_sdxl.py
        "CLIPTextEncodeSDXL, CLIPTextEncodeSDXLRefiner",
        # comfy_extras/nodes_color.py
        "ColorToRGBInt",
        # comfy_extras/nodes_compositing.py
        "JoinImageWithAlpha, PorterDuffImageComposite, SplitImageWithAlpha",
        # comfy_extras/nodes_compositor.py
        "AddLayer, ImageCompositor, LayersFromBoundingBoxes",
        # comfy_extras/nodes_cond.py
        "CLIPTextEncodeControlnet, T5TokenizerOptions",
        # comfy_extras/nodes_context_windows.py
        "ContextWindowsManual, LTXVContextWindows, WanContextWindowsManual",
        # comfy_extras/nodes_controlnet.py
        "ControlNetInpaintingAliMamaApply, SetUnionControlNetType",
        # comfy_extras/nodes_cosmos.py
        "CosmosImageToVideoLatent, CosmosPredict2ImageToVideoLatent, EmptyCosmosLatentVideo",
        # comfy_extras/nodes_curve.py
        "CurveEditor, ImageHistogram",
        # comfy_extras/nodes_custom_sampler.py
        "AddNoise, BasicGuider, BasicScheduler, BetaSamplingScheduler, CFGGuider, "
        "CFGOverride, DisableNoise, DualCFGGuider, DualModelGuider, ExponentialScheduler, "
        "ExtendIntermediateSigmas, FlipSigmas, KarrasScheduler, KSamplerSelect, "
        "LaplaceScheduler, ManualSigmas, PolyexponentialScheduler, RandomNoise, "
        "SamplerCustom, SamplerCustomAdvanced, SamplerDPMAdaptative, SamplerDPMPP_2M_SDE, "
        "SamplerDPMPP_2S_Ancestral, SamplerDPMPP_3M_SDE, SamplerDPMPP_SDE, SamplerER_SDE, "
        "SamplerEulerAncestral, SamplerEulerAncestralCFGPP, SamplerLMS, SamplerSASolver, "
        "SamplerSEEDS2, SamplingPercentToSigma, SDTurboScheduler, SetFirstSigma, SplitSigmas, "
        "SplitSigmasDenoise, VPScheduler",
        # comfy_extras/nodes_dataset.py
        "AddTextPrefix, AddTextSuffix, AdjustBrightness, AdjustContrast, CenterCropImages, "
        "ImageDeduplication, ImageGrid, MergeImageLists, MergeTextLists, NormalizeImages, "
        "RandomCropImages, ReplaceText, ResizeImagesByLongerEdge, ResizeImagesByShorterEdge, "
        "ResolutionBucket, ShuffleDataset, ShuffleImageTextDataset, ShuffleVideoDataset, "
        "ShuffleVideoTextDataset, StripWhitespace, TextToLowercase, TextToUppercase, "
        "TruncateText, VideoFrameSample, VideoRandomTemporalCrop, VideoTemporalCrop",
        # comfy_extras/nodes_depth_anything_3.py
        "DA3GeometryToMesh, DA3Inference, DA3Render",
        # comfy_extras/nodes_differential_diffusion.py
        "DifferentialDiffusion",
        # comfy_extras/nodes_easycache.py
        "EasyCache, LazyCache",
        # comfy_extras/nodes_edit_model.py
        "ReferenceLatent",
        # comfy_extras/nodes_eps.py
        "Epsilon Scaling, TemporalScoreRescaling",
        # comfy_extras/nodes_flux.py
        "CLIPTextEncodeFlux, EmptyFlux2LatentImage, Flux2Scheduler, FluxDisableGuidance, "
        "FluxGuidance, FluxKontextImageScale, FluxKontextMultiReferenceLatentMethod, "
        "FluxKVCache",
        # comfy_extras/nodes_frame_interpolation.py
        "FrameInterpolate",
        # comfy_extras/nodes_freelunch.py
        "FreeU, FreeU_V2",
        # comfy_extras/nodes_fresca.py
        "FreSca",
        # comfy_extras/nodes_gits.py
        "GITSScheduler",
        # comfy_extras/nodes_hidream.py
        "CLIPTextEncodeHiDream",
        # comfy_extras/nodes_hidream_o1.py
        "EmptyHiDreamO1LatentImage, HiDreamO1PatchSeamSmoothing, HiDreamO1ReferenceImages",
        # comfy_extras/nodes_hooks.py
        "CombineHooks2, CombineHooks4, CombineHooks8, ConditioningSetDefaultCombine, "
        "ConditioningSetProperties, ConditioningSetPropertiesAndCombine, "
        "ConditioningTimestepsRange, CreateHookKeyframe, CreateHookKeyframesFromFloats, "
        "CreateHookKeyframesInterpolated, PairConditioningCombine, "
        "PairConditioningSetDefaultCombine, PairConditioningSetProperties, "
        "PairConditioningSetPropertiesAndCombine, SetClipHooks, SetHookKeyframes",
        # comfy_extras/nodes_hunyuan.py
        "CLIPTextEncodeHunyuanDiT, EmptyHunyuanImageLatent, EmptyHunyuanLatentVideo, "
        "EmptyHunyuanVideo15Latent, HunyuanImageToVideo, HunyuanRefinerLatent, "
        "HunyuanVideo15ImageToVideo, HunyuanVideo15LatentUpscaleWithModel, "
        "HunyuanVideo15SuperResolution, TextEncodeHunyuanVideo_ImageToVideo",
        # comfy_extras/nodes_hypertile.py
        "HyperTile",
        # comfy_extras/nodes_ideogram4.py
        "Ideogram4Scheduler",
        # comfy_extras/nodes_images.py
        "GetImageSize, ImageAddNoise, ImageCrop, ImageCropToMask, ImageCropV2, ImageFlip, "
        "ImageFromBatch, ImageMergeTileList, ImageRotate, ImageScaleToMaxDimension, "
        "ImageStitch, PrimitiveBoundingBox, RepeatImageBatch, ResizeAndPadImage, "
        "SplitImageToTileList",
        # comfy_extras/nodes_ip2p.py
        "InstructPixToPixConditioning",
        # comfy_extras/nodes_joyimage.py
        "TextEncodeJoyImageEdit",
        # comfy_extras/nodes_json_prompt.py
        "BuildJsonPromptIdeogram",
        # comfy_extras/nodes_kandinsky5.py
        "CLIPTextEncodeKandinsky5, Kandinsky5ImageToVideo, NormalizeVideoLatentStart",
        # comfy_extras/nodes_latent.py
        "LatentAdd, LatentApplyOperation, LatentApplyOperationCFG, LatentBatch, "
        "LatentBatchSeedBehavior, LatentConcat, LatentCut, LatentCutToBatch, "
        "LatentInterpolate, LatentMultiply, LatentOperationSharpen, "
        "LatentOperationTonemapReinhard, LatentSubtract, ReplaceVideoLatentFrames",
        # comfy_extras/nodes_logic.py
        "ComfyAndNode, ComfyNotNode, ComfyOrNode, ComfySwitchNode, CustomCombo",
        # comfy_extras/nodes_lotus.py
        "LotusConditioning",
        # comfy_extras/nodes_lt.py
        "EmptyLTXVLatentVideo, GetICLoRAParameters, LTXVAddGuide, LTXVConcatAVLatent, "
        "LTXVConditioning, LTXVCropGuides, LTXVDualCFGGuider, LTXVDurationPredictor, "
        "LTXVImgToVideo, LTXVImgToVideoInplace, LTXVModalityGuidance, LTXVPreprocess, "
        "LTXVReferenceAudio, LTXVScheduler, LTXVSeparateAVLatent, LTXVSpatioTemporalGuidance, "
        "ModelSamplingLTXV",
        # comfy_extras/nodes_lt_audio.py
        "LTXVAudioVAEDecode, LTXVAudioVAEEncode, LTXVEmptyLatentAudio",
        # comfy_extras/nodes_lt_upsampler.py
        "LTXVLatentUpsampler",
        # comfy_extras/nodes_lumina2.py
        "CLIPTextEncodeLumina2, RenormCFG",
        # comfy_extras/nodes_mage.py
        "TextEncodeMageFlowEdit",
        # comfy_extras/nodes_mahiro.py
        "Mahiro",
        # comfy_extras/nodes_mask.py
        "CropMask, FeatherMask, GrowMask, ImageColorToMask, ImageCompositeMasked, "
        "ImageToMask, InvertMask, LatentCompositeMasked, MaskComposite, MaskToImage, "
        "SolidMask, ThresholdMask",
        # comfy_extras/nodes_mediapipe.py
        "MediaPipeFaceLandmarker, MediaPipeFaceMask, MediaPipeFaceMeshVisualize",
        # comfy_extras/nodes_minimax_h3.py
        "EmptyMiniMaxH3LatentAV, MiniMaxH3AddGuide, MiniMaxH3ImageToVideo, "
        "MiniMaxH3ReferenceToVideo, MiniMaxH3SigmaShift",
        # comfy_extras/nodes_minimax_music.py
        "EmptyMiniMaxMusic3LatentAudio, MiniMaxMusic3TextEncode",
        # comfy_extras/nodes_mochi.py
        "EmptyMochiLatentVideo",
        # comfy_extras/nodes_model_advanced.py
        "ModelAttentionBackend, ModelComputeDtype, ModelNoiseScale, ModelSamplingAuraFlow, "
        "ModelSamplingContinuousEDM, ModelSamplingContinuousV, ModelSamplingDiscrete, "
        "ModelSamplingFlux, ModelSamplingSD3, ModelSamplingStableCascade, RescaleCFG",
        # comfy_extras/nodes_model_downscale.py
        "PatchModelAddDownscale",
        # comfy_extras/nodes_model_merging.py
        "CLIPMergeAdd, CLIPMergeSimple, CLIPMergeSubtract, ModelMergeAdd, ModelMergeBlocks, "
        "ModelMergeSimple, ModelMergeSubtract",
        # comfy_extras/nodes_model_merging_model_specific.py
        "ModelMergeAuraflow, ModelMergeCosmos14B, ModelMergeCosmos7B, "
        "ModelMergeCosmosPredict2_14B, ModelMergeCosmosPredict2_2B, ModelMergeFlux1, "
        "ModelMergeKrea2, ModelMergeLTXV, ModelMergeMochiPreview, ModelMergeQwenImage, "
        "ModelMergeSD1, ModelMergeSD2, ModelMergeSD35_Large, ModelMergeSD3_2B, "
        "ModelMergeSDXL, ModelMergeWAN2_1",
        # comfy_extras/nodes_model_patch.py
        "AnimaLLLiteApply, QwenImageDiffsynthControlnet, SUPIRApply, USOStyleReference, "
        "WanUni3CControlnetApply, ZImageFunControlnet",
        # comfy_extras/nodes_moge.py
        "MoGeGeometryToFOV, MoGeInference, MoGePanoramaInference, MoGePointMapToMesh, MoGeRender",
        # comfy_extras/nodes_morphology.py
        "ImageRGBToYUV, ImageYUVToRGB, Morphology",
        # comfy_extras/nodes_multigpu.py
        "MultiGPU_WorkUnits, SelectCLIPDevice, SelectModelDevice, SelectVAEDevice",
        # comfy_extras/nodes_nag.py
        "NAGuidance",
        # comfy_extras/nodes_nop.py
        "wanBlockSwap",
        # comfy_extras/nodes_number_convert.py
        "ComfyNumberConvert",
        # comfy_extras/nodes_optimalsteps.py
        "OptimalStepsScheduler",
        # comfy_extras/nodes_pag.py
        "PerturbedAttentionGuidance",
        # comfy_extras/nodes_perpneg.py
        "PerpNeg, PerpNegGuider",
        # comfy_extras/nodes_photomaker.py
        "PhotoMakerEncode",
        # comfy_extras/nodes_pid.py
        "PiDConditioning",
        # comfy_extras/nodes_pixart.py
        "CLIPTextEncodePixArtAlpha",
        # comfy_extras/nodes_post_processing.py
        "BatchImagesNode, BatchLatentsNode, BatchMasksNode, ColorTransfer, ImageBlend, "
        "ImageBlur, ImageQuantize, ImageScaleToTotalPixels, ImageSharpen, ResizeImageMaskNode",
        # comfy_extras/nodes_preview_any.py
        "PreviewAny",
        # comfy_extras/nodes_primitive.py
        "PrimitiveBoolean, PrimitiveFloat, PrimitiveInt, PrimitiveString, PrimitiveStringMultiline",
        # comfy_extras/nodes_qwen.py
        "EmptyQwenImageLayeredLatentImage, TextEncodeQwenImageEdit, TextEncodeQwenImageEditPlus",
        # comfy_extras/nodes_rebatch.py
        "RebatchImages, RebatchLatents",
        # comfy_extras/nodes_resolution.py
        "ResolutionSelector",
        # comfy_extras/nodes_rope.py
        "ScaleROPE",
        # comfy_extras/nodes_rtdetr.py
        "DrawBBoxes, RTDETR_detect",
        # comfy_extras/nodes_sag.py
        "SelfAttentionGuidance",
        # comfy_extras/nodes_sam3.py
        "SAM3_Detect, SAM3_TrackToMask, SAM3_VideoTrack",
        # comfy_extras/nodes_scail.py
        "SCAIL2ColoredMask, WanSCAILToVideo",
        # comfy_extras/nodes_sd3.py
        "CLIPTextEncodeSD3, ControlNetApplySD3, EmptySD3LatentImage, SkipLayerGuidanceSD3",
        # comfy_extras/nodes_sdpose.py
        "CropByBBoxes, SDPoseDrawKeypoints, SDPoseFaceBBoxes, SDPoseKeypointExtractor",
        # comfy_extras/nodes_sdupscale.py
        "SD_4XUpscale_Conditioning",
        # comfy_extras/nodes_seed.py
        "SeedNode",
        # comfy_extras/nodes_seedvr.py
        "SeedVR2Conditioning, SeedVR2PostProcessing, SeedVR2Preprocess, SeedVR2TemporalChunk, "
        "SeedVR2TemporalMerge",
        # comfy_extras/nodes_slg.py
        "SkipLayerGuidanceDiT, SkipLayerGuidanceDiTSimple",
        # comfy_extras/nodes_stable3d.py
        "StableZero123_Conditioning, StableZero123_Conditioning_Batched, SV3D_Conditioning",
        # comfy_extras/nodes_stable_cascade.py
        "StableCascade_EmptyLatentImage, StableCascade_StageB_Conditioning, "
        "StableCascade_StageC_VAEEncode, StableCascade_SuperResolutionControlnet",
        # comfy_extras/nodes_string.py
        "CaseConverter, ConvertArrayToString, ConvertDictionaryToString, JsonExtractString, "
        "StringCompare, StringConcatenate, StringContains, StringLength, StringReplace, "
        "StringSubstring, StringTrim",
        # comfy_extras/nodes_tcfg.py
        "TCFG",
        # comfy_extras/nodes_text_overlay.py
        "TextOverlay",
        # comfy_extras/nodes_textgen.py
        "TextGenerate, TextGenerateLTX2Prompt",
        # comfy_extras/nodes_tomesd.py
        "TomePatchModel",
        # comfy_extras/nodes_toolkit.py
        "CreateList",
        # comfy_extras/nodes_upscale_model.py
        "ImageUpscaleWithModel",
        # comfy_extras/nodes_video.py
        "CreateVideo, GetVideoComponents, Video Slice",
        # comfy_extras/nodes_video_model.py
        "ConditioningSetAreaPercentageVideo, SVD_img2vid_Conditioning, "
        "VideoLinearCFGGuidance, VideoTriangleCFGGuidance",
        # comfy_extras/nodes_wan.py
        "TrimVideoLatent, Wan22FunControlToVideo, Wan22ImageToVideoLatent, WanAnimate2Cache, "
        "WanAnimate2ToVideo, WanAnimateToVideo, WanCameraImageToVideo, "
        "WanFirstLastFrameToVideo, WanFunControlToVideo, WanFunInpaintToVideo, "
        "WanHuMoImageToVideo, WanImageToVideo, WanInfiniteTalkToVideo, "
        "WanPhantomSubjectToVideo, WanSoundImageToVideo, WanSoundImageToVideoExtend, "
        "WanTrackToVideo, WanVaceToVideo",
        # comfy_extras/nodes_wandancer.py
        "WanDancerEncodeAudio, WanDancerPadKeyframes, WanDancerPadKeyframesList, WanDancerVideo",
        # comfy_extras/nodes_zimage.py
        "TextEncodeZImageOmni",
        # this pack
        "ArtMancer_AddCondition, ArtMancer_CastShadow, ArtMancer_Compare, "
        "ArtMancer_ConditionImages, ArtMancer_Edges, ArtMancer_EditSampler, "
        "ArtMancer_EncodeConditions, ArtMancer_ExtractObject, ArtMancer_FillHole, "
        "ArtMancer_Report, ArtMancer_Resize, ArtMancer_ShadowMask, ArtMancer_SplitConditions, "
        "ArtMancer_Stitch, ArtMancer_WhiteBalance",
    )
    for name in names.split(", ")
)
"""Node classes that open no file or connection that an input names, and take no text for a program:
a caller's value may reach each of their inputs. A prompt may name an embedding, as in
"embedding:name"; ComfyUI looks for it in models/embeddings alone.
"""

RESTRICTED_NODES: dict[str, tuple[str, ...]] = {
    # They read a model that a widget names.
    "CheckpointLoader": (),
    "CheckpointLoaderSimple": (),
    "unCLIPCheckpointLoader": (),
    "ImageOnlyCheckpointLoader": (),
    "DiffusersLoader": (),
    "UNETLoader": (),
    "CLIPLoader": (),
    "DualCLIPLoader": (),
    "TripleCLIPLoader": (),
    "QuadrupleCLIPLoader": (),
    "VAELoader": (),
    "LoraLoader": (),
    "LoraLoaderModelOnly": (),
    "LoraLoaderBypass": (),
    "LoraLoaderBypassModelOnly": (),
    "ControlNetLoader": (),
    "DiffControlNetLoader": (),
    "StyleModelLoader": (),
    "CLIPVisionLoader": (),
    "GLIGENLoader": (),
    "HypernetworkLoader": (),
    "ModelPatchLoader": (),
    "UpscaleModelLoader": (),
    "LatentUpscaleModelLoader": (),
    "AudioEncoderLoader": (),
    "PhotoMakerLoader": (),
    "LoadBackgroundRemovalModel": (),
    "LoadDA3Model": (),
    "LoadMoGeModel": (),
    "LoadMediaPipeFaceLandmarker": (),
    "FrameInterpolationModelLoader": (),
    "LTXVAudioVAELoader": (),
    "LTXAVTextEncoderLoader": (),
    "CreateHookLora": (),
    "CreateHookLoraModelOnly": (),
    "CreateHookModelAsLora": (),
    "CreateHookModelAsLoraModelOnly": (),
    # It takes the names of editors that it lists, and no others.
    "ArtMancer_LoadEditor": ("strength", "editor"),
    # They use a model that a widget names, and a caller's clicks.
    "ArtMancer_SmartMask": (
        *("image", "brush", "prompt", "candidate", "grow", "smooth", "feather", "drop_specks"),
        *("fill_holes", "keep_largest"),
    ),
    "ArtMancer_RemoveBackground": ("image", "color", "alpha_matting", "decontaminate"),
    # They write a file that a widget names.
    "SaveImage": (),
    "PreviewImage": (),
    "SaveImageAdvanced": (),
    "SaveAnimatedWEBP": (),
    "SaveAnimatedPNG": (),
    "ImageCompare": (),
    "MaskPreview": (),
    "SaveAudio": (),
    "SaveAudioAdvanced": (),
    "SaveAudioMP3": (),
    "SaveAudioOpus": (),
    "PreviewAudio": (),
    "SaveVideo": (),
    "SaveWEBM": (),
    "ArtMancer_EndpointResult": ("value",),
    # They take a text for a program: a formula, a format, a pattern, a shader, a backend.
    "ComfyMathExpression": ("values",),
    "StringFormat": ("values",),
    "RegexMatch": ("string",),
    "RegexExtract": ("string",),
    "RegexReplace": ("string", "replace"),
    "GLSLShader": ("images",),
    "TorchCompileModel": (),
}
"""Node classes that touch files, or take a text for a program. A caller's value may reach their
inputs with a type of DATA_TYPES, and the inputs listed here. The pack's own are listed whole: a
gateway may serve them before it knows the node classes of its ComfyUI.
"""

DATA_TYPES = frozenset(
    {
        "AUDIO",
        "AUDIO_ENCODER",
        "AUDIO_ENCODER_OUTPUT",
        "BACKGROUND_REMOVAL",
        "BOOLEAN",
        "BOUNDING_BOX",
        "CLIP",
        "CLIP_VISION",
        "CLIP_VISION_OUTPUT",
        "CONDITIONING",
        "CONTROL_NET",
        "FLOAT",
        "GLIGEN",
        "GUIDER",
        "HOOKS",
        "HOOK_KEYFRAMES",
        "IMAGE",
        "INT",
        "LATENT",
        "LATENT_OPERATION",
        "LATENT_UPSCALE_MODEL",
        "MASK",
        "MODEL",
        "MODEL_PATCH",
        "NOISE",
        "PHOTOMAKER",
        "SAMPLER",
        "SIGMAS",
        "STYLE_MODEL",
        "TIMESTEPS_RANGE",
        "UPSCALE_MODEL",
        "VAE",
        "VIDEO",
    }
)
"""Types of inputs that cannot name a file."""
