"""The settings that each class of Keras' layers knows, in any version from 2.0 to 3.15.

Taken from the sources of those versions: what `get_config` of a class or of one that it is made of
writes, and what their constructors name. `tests/model/test_identity.py` compares the table with the
installed Keras and tf_keras.
"""

from collections.abc import Mapping

_COMMON = """
    activity_regularizer autocast batch_input_shape batch_shape batch_size dtype dynamic input_dtype
    input_shape name trainable weights
"""

_OWN = """
    Activation: activation
    ActivityRegularization: l1 l2
    AdaptiveAveragePooling1D: data_format output_size
    AdaptiveAveragePooling2D: data_format output_size
    AdaptiveAveragePooling3D: data_format output_size
    AdaptiveMaxPooling1D: data_format output_size
    AdaptiveMaxPooling2D: data_format output_size
    AdaptiveMaxPooling3D: data_format output_size
    Add:
    AdditiveAttention: causal dropout force_generator rng_type score_mode seed use_scale
    AlphaDropout: force_generator noise_shape rate rng_type seed
    Attention: causal dropout force_generator rng_type score_mode seed use_scale
    AugMix: all_ops alpha bounding_box_format chain_depth data_format factor interpolation
        num_chains seed value_range
    AutoContrast: bounding_box_format data_format factor value_range
    Average:
    AveragePooling1D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    AveragePooling2D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    AveragePooling3D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    BatchNormalization: adjustment axis beta_constraint beta_initializer beta_regularizer center
        epsilon fused gamma_constraint gamma_initializer gamma_regularizer momentum
        moving_mean_initializer moving_variance_initializer renorm renorm_clipping renorm_momentum
        scale synchronized virtual_batch_size
    Bidirectional: backward_layer layer merge_mode num_constants
    CategoryEncoding: num_tokens output_mode sparse
    CenterCrop: bounding_box_format data_format factor height width
    ClassMethod: cls_ref cls_symbol method_name
    Concatenate: axis
    ContrastLimitedAdaptiveHistogramEqualization: bounding_box_format clip_limit data_format factor
        tile_grid_size value_range
    Conv1D: activation bias_constraint bias_initializer bias_regularizer conv_op data_format
        dilation_rate filters groups kernel_constraint kernel_initializer kernel_regularizer
        kernel_size lora_alpha lora_rank padding rank strides use_bias
    Conv1DTranspose: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size output_padding padding rank strides use_bias
    Conv2D: activation bias_constraint bias_initializer bias_regularizer conv_op data_format
        dilation_rate filters groups kernel_constraint kernel_initializer kernel_regularizer
        kernel_size lora_alpha lora_rank padding rank strides use_bias
    Conv2DTranspose: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size output_padding padding rank strides use_bias
    Conv3D: activation bias_constraint bias_initializer bias_regularizer conv_op data_format
        dilation_rate filters groups kernel_constraint kernel_initializer kernel_regularizer
        kernel_size lora_alpha lora_rank padding rank strides use_bias
    Conv3DTranspose: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size output_padding padding rank strides use_bias
    ConvLSTM1D: activation bias_constraint bias_initializer bias_regularizer cell data_format
        dilation_rate dropout filters go_backwards kernel_constraint kernel_initializer
        kernel_regularizer kernel_size num_constants padding rank recurrent_activation
        recurrent_constraint recurrent_dropout recurrent_initializer recurrent_regularizer
        return_sequences return_state seed stateful strides time_major unit_forget_bias unroll
        use_bias zero_output_for_mask
    ConvLSTM2D: activation bias_constraint bias_initializer bias_regularizer cell data_format
        dilation_rate dropout filters go_backwards implementation kernel_constraint
        kernel_initializer kernel_regularizer kernel_size num_constants padding rank
        recurrent_activation recurrent_constraint recurrent_dropout recurrent_initializer
        recurrent_regularizer return_sequences return_state seed stateful strides time_major
        unit_forget_bias unroll use_bias zero_output_for_mask
    ConvLSTM3D: activation bias_constraint bias_initializer bias_regularizer cell data_format
        dilation_rate dropout filters go_backwards kernel_constraint kernel_initializer
        kernel_regularizer kernel_size num_constants padding rank recurrent_activation
        recurrent_constraint recurrent_dropout recurrent_initializer recurrent_regularizer
        return_sequences return_state seed stateful strides time_major unit_forget_bias unroll
        use_bias zero_output_for_mask
    Cropping1D: cropping data_format
    Cropping2D: cropping data_format
    Cropping3D: cropping data_format
    CuDNNGRU: bias_constraint bias_initializer bias_regularizer cell go_backwards kernel_constraint
        kernel_initializer kernel_regularizer num_constants recurrent_constraint
        recurrent_initializer recurrent_regularizer return_sequences return_state stateful
        time_major units unroll zero_output_for_mask
    CuDNNLSTM: bias_constraint bias_initializer bias_regularizer cell go_backwards kernel_constraint
        kernel_initializer kernel_regularizer num_constants recurrent_constraint
        recurrent_initializer recurrent_regularizer return_sequences return_state stateful
        time_major unit_forget_bias units unroll zero_output_for_mask
    CutMix: bounding_box_format data_format factor seed
    Dense: activation bias_constraint bias_initializer bias_regularizer kernel_constraint
        kernel_initializer kernel_regularizer lora_alpha lora_rank quantization_config units
        use_bias
    DenseFeatures: expected_column_type feature_columns partitioner
    DepthwiseConv1D: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format depth_multiplier depthwise_constraint depthwise_initializer
        depthwise_regularizer dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size padding rank strides use_bias
    DepthwiseConv2D: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format depth_multiplier depthwise_constraint depthwise_initializer
        depthwise_regularizer dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size padding rank strides use_bias
    Discretization: bin_boundaries epsilon num_bins output_mode sparse
    Dot: axes normalize
    Dropout: force_generator noise_shape rate rng_type seed
    DynamicEmbedding: embedding_initializer eviction_policy initial_vocabulary input_dim
        input_length num_oov_indices output_dim
    DynamicLookup: eviction_policy initial_vocabulary vocabulary_size
    ELU: alpha
    EinsumDense: activation bias_axes bias_constraint bias_initializer bias_regularizer equation
        gptq_unpacked_column_size kernel_constraint kernel_initializer kernel_regularizer lora_alpha
        lora_rank output_shape quantization_config
    Embedding: embeddings_constraint embeddings_initializer embeddings_regularizer input_dim
        input_length lora_alpha lora_rank mask_zero output_dim quantization_config sparse
    Equalization: bins bounding_box_format data_format factor value_range
    Flatten: data_format
    FlaxLayer: call_fn init_fn method module native_serialization_platforms params seed state
        variables
    Functional: backend inbound_nodes input_layers inputs keras_version layers output_layers outputs
    GRU: activation bias_constraint bias_initializer bias_regularizer cell dropout force_generator
        go_backwards implementation kernel_constraint kernel_initializer kernel_regularizer
        num_constants recurrent_activation recurrent_constraint recurrent_dropout
        recurrent_initializer recurrent_regularizer reset_after return_sequences return_state
        rng_type seed stateful time_major units unroll use_bias use_cudnn zero_output_for_mask
    GRUCell: activation bias_constraint bias_initializer bias_regularizer dropout force_generator
        implementation kernel_constraint kernel_initializer kernel_regularizer num_units
        recurrent_activation recurrent_constraint recurrent_dropout recurrent_initializer
        recurrent_regularizer reset_after reuse rng_type seed units use_bias
    GaussianDropout: force_generator rate rng_type seed
    GaussianNoise: force_generator rng_type seed stddev
    GlobalAveragePooling1D: data_format keepdims pool_dimensions
    GlobalAveragePooling2D: data_format keepdims pool_dimensions
    GlobalAveragePooling3D: data_format keepdims pool_dimensions
    GlobalMaxPooling1D: data_format keepdims pool_dimensions
    GlobalMaxPooling2D: data_format keepdims pool_dimensions
    GlobalMaxPooling3D: data_format keepdims pool_dimensions
    GroupNormalization: axis beta_constraint beta_initializer beta_regularizer center epsilon
        gamma_constraint gamma_initializer gamma_regularizer groups scale
    GroupQueryAttention: bias_constraint bias_initializer bias_regularizer dropout flash_attention
        head_dim kernel_constraint kernel_initializer kernel_regularizer num_key_value_heads
        num_query_heads seed sliding_window use_bias use_gate
    GroupedQueryAttention: bias_constraint bias_initializer bias_regularizer dropout flash_attention
        head_dim kernel_constraint kernel_initializer kernel_regularizer num_key_value_heads
        num_query_heads seed sliding_window use_bias use_gate
    HashedCrossing: num_bins output_mode sparse
    Hashing: mask_value num_bins output_mode salt sparse
    Highway: W_constraint W_regularizer activation b_constraint b_regularizer bias init input_dim
    Identity:
    InputLayer: input_tensor optional ragged shape sparse type_spec
    InstanceMethod: attr_name
    InstanceProperty: attr_name
    IntegerLookup: idf_weights invert mask_token max_tokens num_oov_indices oov_method oov_token
        output_mode pad_to_max_tokens salt sparse vocabulary vocabulary_dtype vocabulary_size
    JaxLayer: call_fn init_fn native_serialization_platforms params seed state
    LSTM: activation bias_constraint bias_initializer bias_regularizer cell dropout force_generator
        go_backwards implementation kernel_constraint kernel_initializer kernel_regularizer
        num_constants recurrent_activation recurrent_constraint recurrent_dropout
        recurrent_initializer recurrent_regularizer return_sequences return_state rng_type seed
        stateful time_major unit_forget_bias units unroll use_bias use_cudnn zero_output_for_mask
    LSTMCell: activation bias_constraint bias_initializer bias_regularizer cell_clip dropout
        force_generator forget_bias implementation initializer kernel_constraint kernel_initializer
        kernel_regularizer num_proj num_proj_shards num_unit_shards num_units proj_clip
        recurrent_activation recurrent_constraint recurrent_dropout recurrent_initializer
        recurrent_regularizer reuse rng_type seed state_is_tuple unit_forget_bias units use_bias
        use_peepholes
    Lambda: arguments function function_type mask_module mask_type module output_shape
        output_shape_module output_shape_type
    LayerNormalization: axis beta_constraint beta_initializer beta_regularizer center epsilon
        gamma_constraint gamma_initializer gamma_regularizer rms_scaling scale
    LeakyReLU: alpha negative_slope
    LocallyConnected1D: activation bias_constraint bias_initializer bias_regularizer data_format
        filters implementation kernel_constraint kernel_initializer kernel_regularizer kernel_size
        padding strides use_bias
    LocallyConnected2D: activation bias_constraint bias_initializer bias_regularizer data_format
        filters implementation kernel_constraint kernel_initializer kernel_regularizer kernel_size
        padding strides use_bias
    Masking: mask_value
    MaxNumBoundingBoxes: bounding_box_format data_format factor fill_value max_number
    MaxPooling1D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    MaxPooling2D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    MaxPooling3D: data_format padding pool_dimensions pool_function pool_mode pool_size strides
    Maximum:
    MaxoutDense: W_constraint W_regularizer b_constraint b_regularizer bias init input_dim
        nb_feature output_dim
    MelSpectrogram: fft_length mag_exp max_freq min_freq min_power num_mel_bins power_to_db
        ref_power sampling_rate sequence_length sequence_stride top_db window
    Minimum:
    MixUp: alpha bounding_box_format data_format factor seed
    Model: backend inbound_nodes input_layers inputs keras_version layers output_layers outputs
    MultiHeadAttention: attention_axes bias_constraint bias_initializer bias_regularizer dropout
        flash_attention kernel_constraint kernel_initializer kernel_regularizer key_dim key_shape
        num_heads output_shape query_shape seed sliding_window softmax_robust_masking use_bias
        use_gate value_dim value_shape
    Multiply:
    Network: backend inbound_nodes input_layers keras_version layers output_layers
    Normalization: axis invert mean variance
    PReLU: alpha_constraint alpha_initializer alpha_regularizer shared_axes
    Permute: dims
    Pipeline: layers
    RMSNormalization: axis epsilon
    RNN: cell go_backwards num_constants return_sequences return_state stateful time_major unroll
        zero_output_for_mask
    RandAugment: bounding_box_format data_format factor interpolation num_ops seed value_range
    RandomBrightness: bounding_box_format data_format factor force_generator rate rng_type seed
        value_range
    RandomColorDegeneration: bounding_box_format data_format factor seed value_range
    RandomColorJitter: bounding_box_format brightness_factor contrast_factor data_format factor
        hue_factor saturation_factor seed value_range
    RandomContrast: bounding_box_format data_format factor force_generator rate rng_type seed
        value_range
    RandomCrop: bounding_box_format data_format factor force_generator height rng_type seed width
    RandomElasticTransform: bounding_box_format data_format factor fill_mode fill_value
        interpolation scale seed value_range
    RandomErasing: bounding_box_format data_format factor fill_value scale seed value_range
    RandomFlip: bounding_box_format data_format factor force_generator mode rate rng_type seed
    RandomFourierFeatures: kernel_initializer output_dim scale
    RandomGaussianBlur: bounding_box_format data_format factor kernel_size seed sigma value_range
    RandomGrayscale: bounding_box_format data_format factor seed
    RandomHeight: factor force_generator interpolation rng_type seed
    RandomHue: bounding_box_format data_format factor seed value_range
    RandomInvert: bounding_box_format data_format factor seed value_range
    RandomPerspective: bounding_box_format data_format factor fill_value interpolation scale seed
    RandomPosterization: bounding_box_format data_format factor seed value_range
    RandomRotation: bounding_box_format data_format factor fill_mode fill_value force_generator
        interpolation rng_type seed value_range
    RandomSaturation: bounding_box_format data_format factor seed value_range
    RandomSharpness: bounding_box_format data_format factor seed value_range
    RandomShear: bounding_box_format data_format factor fill_mode fill_value interpolation seed
        x_factor y_factor
    RandomTranslation: bounding_box_format data_format factor fill_mode fill_value force_generator
        height_factor interpolation rate rng_type seed width_factor
    RandomWidth: factor force_generator interpolation rng_type seed
    RandomZoom: bounding_box_format data_format factor fill_mode fill_value force_generator
        height_factor interpolation rng_type seed width_factor
    ReLU: max_value negative_slope threshold
    RepeatVector: n
    Rescaling: offset scale
    Reshape: target_shape
    Resizing: antialias bounding_box_format crop_to_aspect_ratio data_format factor fill_mode
        fill_value height interpolation pad_to_aspect_ratio width
    ReversibleEmbedding: embeddings_constraint embeddings_initializer embeddings_regularizer
        input_dim logit_soft_cap lora_alpha lora_rank mask_zero output_dim quantization_config
        reverse_dtype tie_weights
    STFTSpectrogram: data_format expand_dims fft_length frame_length frame_step mode padding
        periodic scaling window
    SeparableConv1D: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format depth_multiplier depthwise_constraint depthwise_initializer
        depthwise_regularizer dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size padding pointwise_constraint pointwise_initializer
        pointwise_regularizer rank strides use_bias
    SeparableConv2D: activation bias_constraint bias_initializer bias_regularizer conv_op
        data_format depth_multiplier depthwise_constraint depthwise_initializer
        depthwise_regularizer dilation_rate filters groups kernel_constraint kernel_initializer
        kernel_regularizer kernel_size padding pointwise_constraint pointwise_initializer
        pointwise_regularizer rank strides use_bias
    Sequential: backend build_input_shape inbound_nodes input_layers inputs keras_version layers
        output_layers outputs
    SimpleRNN: activation bias_constraint bias_initializer bias_regularizer cell dropout
        go_backwards implementation kernel_constraint kernel_initializer kernel_regularizer
        num_constants recurrent_constraint recurrent_dropout recurrent_initializer
        recurrent_regularizer return_sequences return_state seed stateful time_major units unroll
        use_bias zero_output_for_mask
    SimpleRNNCell: activation bias_constraint bias_initializer bias_regularizer dropout
        force_generator kernel_constraint kernel_initializer kernel_regularizer recurrent_constraint
        recurrent_dropout recurrent_initializer recurrent_regularizer rng_type seed units use_bias
    SlicingOpLambda: function
    Softmax: axis robust_masking
    Solarization: addition_factor bounding_box_format data_format factor seed threshold_factor
        value_range
    SpatialDropout1D: force_generator noise_shape rate rng_type seed
    SpatialDropout2D: data_format force_generator noise_shape rate rng_type seed
    SpatialDropout3D: data_format force_generator noise_shape rate rng_type seed
    SpectralNormalization: layer power_iterations
    StackedRNNCells: cells
    StringLookup: encoding idf_weights invert mask_token max_tokens num_oov_indices oov_method
        oov_token output_mode pad_to_max_tokens salt sparse vocabulary vocabulary_dtype
        vocabulary_size
    Subtract:
    SyncBatchNormalization: adjustment axis beta_constraint beta_initializer beta_regularizer center
        epsilon fused gamma_constraint gamma_initializer gamma_regularizer momentum
        moving_mean_initializer moving_variance_initializer renorm renorm_clipping renorm_momentum
        scale synchronized virtual_batch_size
    TFOpLambda: function
    TFSMLayer: call_endpoint call_training_endpoint filepath
    TensorFlowOpLayer: constants node_def
    TextVectorization: encoding idf_weights max_tokens ngrams output_mode output_sequence_length
        pad_to_max_tokens ragged sparse split standardize vocabulary vocabulary_size
    ThresholdedReLU: theta
    TimeDistributed: layer
    TorchModuleWrapper: module output_shape
    UnitNormalization: axis
    UpSampling1D: data_format size
    UpSampling2D: data_format interpolation size
    UpSampling3D: data_format size
    ZeroPadding1D: data_format padding
    ZeroPadding2D: data_format padding
    ZeroPadding3D: data_format padding
"""


def _table() -> dict[str, frozenset[str]]:
    table: dict[str, set[str]] = {}
    for word in _OWN.split():
        if word.endswith(":"):
            last = table[word[:-1]] = set(_COMMON.split())
        else:
            last.add(word)
    # TensorFlow 1.13 to 1.15
    for name in ("BatchNormalization", "GRU", "GRUCell", "LSTM", "LSTMCell"):
        table |= {f"{name}V1": table[name], f"{name}V2": table[name]}
    return {name: frozenset(settings) for name, settings in table.items()}


SETTINGS: Mapping[str, frozenset[str]] = _table()
"""The settings by the class's name."""
