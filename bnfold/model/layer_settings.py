"""The settings that each class of Keras' layers knows, in any version from 2.0 to 3.15.

Taken from the sources of those versions: what `get_config` of a class or of one that it is made of
writes, and what their constructors name. `tests/model/test_identity.py` compares the table with the
installed Keras and tf_keras.
"""

import re
from collections.abc import Mapping
from functools import cache

_COMMON = """
    activity_regularizer autocast batch_input_shape batch_shape batch_size dtype dynamic input_dtype
    input_shape name trainable weights
"""

_OWN = """
    Activation: activation
    ActivityRegularization: l1 l2
    AdaptiveAveragePooling1D AdaptiveAveragePooling2D AdaptiveAveragePooling3D
        AdaptiveMaxPooling1D AdaptiveMaxPooling2D AdaptiveMaxPooling3D: data_format output_size
    Add Average Identity Maximum Minimum Multiply Subtract:
    AdditiveAttention Attention: causal dropout force_generator rng_type score_mode seed
        use_scale
    AlphaDropout Dropout SpatialDropout1D: force_generator noise_shape rate rng_type seed
    AugMix: all_ops alpha bounding_box_format chain_depth data_format factor interpolation
        num_chains seed value_range
    AutoContrast: bounding_box_format data_format factor value_range
    AveragePooling1D AveragePooling2D AveragePooling3D MaxPooling1D MaxPooling2D MaxPooling3D:
        data_format padding pool_dimensions pool_function pool_mode pool_size strides
    BatchNormalization SyncBatchNormalization: adjustment axis beta_* center epsilon fused
        gamma_* momentum moving_mean_initializer moving_variance_initializer renorm
        renorm_clipping renorm_momentum scale synchronized virtual_batch_size
    Bidirectional: backward_layer layer merge_mode num_constants
    CategoryEncoding: num_tokens output_mode sparse
    CenterCrop: bounding_box_format data_format factor height width
    ClassMethod: cls_ref cls_symbol method_name
    Concatenate UnitNormalization: axis
    ContrastLimitedAdaptiveHistogramEqualization: bounding_box_format clip_limit data_format
        factor tile_grid_size value_range
    Conv1D Conv2D Conv3D: activation bias_* conv_op data_format dilation_rate filters groups
        kernel_* kernel_size lora_alpha lora_rank padding rank strides use_bias
    Conv1DTranspose Conv2DTranspose Conv3DTranspose: activation bias_* conv_op data_format
        dilation_rate filters groups kernel_* kernel_size output_padding padding rank strides
        use_bias
    ConvLSTM1D ConvLSTM3D: activation bias_* cell data_format dilation_rate dropout filters
        go_backwards kernel_* kernel_size num_constants padding rank recurrent_*
        recurrent_activation recurrent_dropout return_sequences return_state seed stateful
        strides time_major unit_forget_bias unroll use_bias zero_output_for_mask
    ConvLSTM2D: activation bias_* cell data_format dilation_rate dropout filters go_backwards
        implementation kernel_* kernel_size num_constants padding rank recurrent_*
        recurrent_activation recurrent_dropout return_sequences return_state seed stateful
        strides time_major unit_forget_bias unroll use_bias zero_output_for_mask
    Cropping1D Cropping2D Cropping3D: cropping data_format
    CuDNNGRU: bias_* cell go_backwards kernel_* num_constants recurrent_* return_sequences
        return_state stateful time_major units unroll zero_output_for_mask
    CuDNNLSTM: bias_* cell go_backwards kernel_* num_constants recurrent_* return_sequences
        return_state stateful time_major unit_forget_bias units unroll zero_output_for_mask
    CutMix RandomGrayscale: bounding_box_format data_format factor seed
    Dense: activation bias_* kernel_* lora_alpha lora_rank quantization_config units use_bias
    DenseFeatures: expected_column_type feature_columns partitioner
    DepthwiseConv1D DepthwiseConv2D: activation bias_* conv_op data_format depth_multiplier
        depthwise_* dilation_rate filters groups kernel_* kernel_size padding rank strides
        use_bias
    Discretization: bin_boundaries epsilon num_bins output_mode sparse
    Dot: axes normalize
    DynamicEmbedding: embedding_initializer eviction_policy initial_vocabulary input_dim
        input_length num_oov_indices output_dim
    DynamicLookup: eviction_policy initial_vocabulary vocabulary_size
    ELU: alpha
    EinsumDense: activation bias_* bias_axes equation gptq_unpacked_column_size kernel_*
        lora_alpha lora_rank output_shape quantization_config
    Embedding: embeddings_* input_dim input_length lora_alpha lora_rank mask_zero output_dim
        quantization_config sparse
    Equalization: bins bounding_box_format data_format factor value_range
    Flatten: data_format
    FlaxLayer: call_fn init_fn method module native_serialization_platforms params seed state
        variables
    Functional Model: backend inbound_nodes input_layers inputs keras_version layers
        output_layers outputs
    GRU: activation bias_* cell dropout force_generator go_backwards implementation kernel_*
        num_constants recurrent_* recurrent_activation recurrent_dropout reset_after
        return_sequences return_state rng_type seed stateful time_major units unroll use_bias
        use_cudnn zero_output_for_mask
    GRUCell: activation bias_* dropout force_generator implementation kernel_* num_units
        recurrent_* recurrent_activation recurrent_dropout reset_after reuse rng_type seed units
        use_bias
    GaussianDropout: force_generator rate rng_type seed
    GaussianNoise: force_generator rng_type seed stddev
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalMaxPooling1D
        GlobalMaxPooling2D GlobalMaxPooling3D: data_format keepdims pool_dimensions
    GroupNormalization: axis beta_* center epsilon gamma_* groups scale
    GroupQueryAttention GroupedQueryAttention: bias_* dropout flash_attention head_dim kernel_*
        num_key_value_heads num_query_heads seed sliding_window use_bias use_gate
    HashedCrossing: num_bins output_mode sparse
    Hashing: mask_value num_bins output_mode salt sparse
    Highway: W_constraint W_regularizer activation b_constraint b_regularizer bias init
        input_dim
    InputLayer: input_tensor optional ragged shape sparse type_spec
    InstanceMethod InstanceProperty: attr_name
    IntegerLookup: idf_weights invert mask_token max_tokens num_oov_indices oov_method oov_token
        output_mode pad_to_max_tokens salt sparse vocabulary vocabulary_dtype vocabulary_size
    JaxLayer: call_fn init_fn native_serialization_platforms params seed state
    LSTM: activation bias_* cell dropout force_generator go_backwards implementation kernel_*
        num_constants recurrent_* recurrent_activation recurrent_dropout return_sequences
        return_state rng_type seed stateful time_major unit_forget_bias units unroll use_bias
        use_cudnn zero_output_for_mask
    LSTMCell: activation bias_* cell_clip dropout force_generator forget_bias implementation
        initializer kernel_* num_proj num_proj_shards num_unit_shards num_units proj_clip
        recurrent_* recurrent_activation recurrent_dropout reuse rng_type seed state_is_tuple
        unit_forget_bias units use_bias use_peepholes
    Lambda: arguments function function_type mask_module mask_type module output_shape
        output_shape_module output_shape_type
    LayerNormalization: axis beta_* center epsilon gamma_* rms_scaling scale
    LeakyReLU: alpha negative_slope
    LocallyConnected1D LocallyConnected2D: activation bias_* data_format filters implementation
        kernel_* kernel_size padding strides use_bias
    Masking: mask_value
    MaxNumBoundingBoxes: bounding_box_format data_format factor fill_value max_number
    MaxoutDense: W_constraint W_regularizer b_constraint b_regularizer bias init input_dim
        nb_feature output_dim
    MelSpectrogram: fft_length mag_exp max_freq min_freq min_power num_mel_bins power_to_db
        ref_power sampling_rate sequence_length sequence_stride top_db window
    MixUp: alpha bounding_box_format data_format factor seed
    MultiHeadAttention: attention_axes bias_* dropout flash_attention kernel_* key_dim key_shape
        num_heads output_shape query_shape seed sliding_window softmax_robust_masking use_bias
        use_gate value_dim value_shape
    Network: backend inbound_nodes input_layers keras_version layers output_layers
    Normalization: axis invert mean variance
    PReLU: alpha_* shared_axes
    Permute: dims
    Pipeline: layers
    RMSNormalization: axis epsilon
    RNN: cell go_backwards num_constants return_sequences return_state stateful time_major
        unroll zero_output_for_mask
    RandAugment: bounding_box_format data_format factor interpolation num_ops seed value_range
    RandomBrightness RandomContrast: bounding_box_format data_format factor force_generator rate
        rng_type seed value_range
    RandomColorDegeneration RandomHue RandomInvert RandomPosterization RandomSaturation
        RandomSharpness: bounding_box_format data_format factor seed value_range
    RandomColorJitter: bounding_box_format brightness_factor contrast_factor data_format factor
        hue_factor saturation_factor seed value_range
    RandomCrop: bounding_box_format data_format factor force_generator height rng_type seed
        width
    RandomElasticTransform: bounding_box_format data_format factor fill_mode fill_value
        interpolation scale seed value_range
    RandomErasing: bounding_box_format data_format factor fill_value scale seed value_range
    RandomFlip: bounding_box_format data_format factor force_generator mode rate rng_type seed
    RandomFourierFeatures: kernel_initializer output_dim scale
    RandomGaussianBlur: bounding_box_format data_format factor kernel_size seed sigma
        value_range
    RandomHeight RandomWidth: factor force_generator interpolation rng_type seed
    RandomPerspective: bounding_box_format data_format factor fill_value interpolation scale
        seed
    RandomRotation: bounding_box_format data_format factor fill_mode fill_value force_generator
        interpolation rng_type seed value_range
    RandomShear: bounding_box_format data_format factor fill_mode fill_value interpolation seed
        x_factor y_factor
    RandomTranslation: bounding_box_format data_format factor fill_mode fill_value
        force_generator height_factor interpolation rate rng_type seed width_factor
    RandomZoom: bounding_box_format data_format factor fill_mode fill_value force_generator
        height_factor interpolation rng_type seed width_factor
    ReLU: max_value negative_slope threshold
    RepeatVector: n
    Rescaling: offset scale
    Reshape: target_shape
    Resizing: antialias bounding_box_format crop_to_aspect_ratio data_format factor fill_mode
        fill_value height interpolation pad_to_aspect_ratio width
    ReversibleEmbedding: embeddings_* input_dim logit_soft_cap lora_alpha lora_rank mask_zero
        output_dim quantization_config reverse_dtype tie_weights
    STFTSpectrogram: data_format expand_dims fft_length frame_length frame_step mode padding
        periodic scaling window
    SeparableConv1D SeparableConv2D: activation bias_* conv_op data_format depth_multiplier
        depthwise_* dilation_rate filters groups kernel_* kernel_size padding pointwise_* rank
        strides use_bias
    Sequential: backend build_input_shape inbound_nodes input_layers inputs keras_version layers
        output_layers outputs
    SimpleRNN: activation bias_* cell dropout go_backwards implementation kernel_* num_constants
        recurrent_* recurrent_dropout return_sequences return_state seed stateful time_major
        units unroll use_bias zero_output_for_mask
    SimpleRNNCell: activation bias_* dropout force_generator kernel_* recurrent_*
        recurrent_dropout rng_type seed units use_bias
    SlicingOpLambda TFOpLambda: function
    Softmax: axis robust_masking
    Solarization: addition_factor bounding_box_format data_format factor seed threshold_factor
        value_range
    SpatialDropout2D SpatialDropout3D: data_format force_generator noise_shape rate rng_type
        seed
    SpectralNormalization: layer power_iterations
    StackedRNNCells: cells
    StringLookup: encoding idf_weights invert mask_token max_tokens num_oov_indices oov_method
        oov_token output_mode pad_to_max_tokens salt sparse vocabulary vocabulary_dtype
        vocabulary_size
    TFSMLayer: call_endpoint call_training_endpoint filepath
    TensorFlowOpLayer: constants node_def
    TextVectorization: encoding idf_weights max_tokens ngrams output_mode output_sequence_length
        pad_to_max_tokens ragged sparse split standardize vocabulary vocabulary_size
    ThresholdedReLU: theta
    TimeDistributed: layer
    TorchModuleWrapper: module output_shape
    UpSampling1D UpSampling3D: data_format size
    UpSampling2D: data_format interpolation size
    ZeroPadding1D ZeroPadding2D ZeroPadding3D: data_format padding
"""
"""The classes that know the same settings, and which. `kernel_*` are those of a variable: its
constraint, initializer and regularizer."""


@cache
def table() -> Mapping[str, frozenset[str]]:
    """The settings by the class's name; made when a class has to be told by them."""
    table: dict[str, frozenset[str]] = {}
    for row in re.split(r"\n {4}(?=\w)", _OWN):
        names, _, own = row.partition(":")
        words = f"{_COMMON} {own}".split()
        table |= dict.fromkeys(names.split(), frozenset(s for w in words for s in _settings(w)))
    # TensorFlow 1.13 to 1.15
    for name in ("BatchNormalization", "GRU", "GRUCell", "LSTM", "LSTMCell"):
        table |= {f"{name}V1": table[name], f"{name}V2": table[name]}
    return table


def _settings(word: str) -> list[str]:
    kinds = ("constraint", "initializer", "regularizer")
    return [word.replace("*", kind) for kind in kinds] if word.endswith("*") else [word]
