"""The classes and functions of Keras that a model's config may name, and nothing else of Keras.

A config names what the loader is to call. Only what computes on tensors, or describes how, stands
here: no class that runs code out of the file, reads another file or calls TensorFlow by name, and
no function of `keras.utils`, `keras.config` or `keras.saving`. The lists are those of Keras 3.15.1
and tf_keras 2.21.0, with what older versions had. What is new in a later Keras is not known until
it is added. `python tests/builders/keras_parts.py` prints what the installed versions have, and
`tests/running/test_keras_names.py` names what is in none of the lists.
"""

_MODELS = """
    Functional Model Network Sequential
"""

_LAYERS = """
    AbstractRNNCell Activation ActivityRegularization AdaptiveAveragePooling1D
    AdaptiveAveragePooling2D AdaptiveAveragePooling3D AdaptiveMaxPooling1D AdaptiveMaxPooling2D
    AdaptiveMaxPooling3D Add AddLoss AddMetric AdditiveAttention AlphaDropout Attention AugMix
    AutoContrast Average AveragePooling1D AveragePooling2D AveragePooling3D AvgPool1D AvgPool2D
    AvgPool3D BatchNormalization BatchNormalizationV1 BatchNormalizationV2 Bidirectional
    CategoryEncoding CenterCrop Concatenate ContrastLimitedAdaptiveHistogramEqualization Conv1D
    Conv1DTranspose Conv2D Conv2DTranspose Conv3D Conv3DTranspose ConvLSTM1D ConvLSTM2D ConvLSTM3D
    Convolution1D Convolution1DTranspose Convolution2D Convolution2DTranspose Convolution3D
    Convolution3DTranspose Cropping1D Cropping2D Cropping3D CuDNNGRU CuDNNLSTM CutMix Dense
    DepthwiseConv1D DepthwiseConv2D Discretization Dot Dropout ELU EinsumDense Embedding
    Equalization Flatten GRU GRUCell GRUCellV1 GRUCellV2 GRUV1 GRUV2 GaussianDropout GaussianNoise
    GlobalAveragePooling1D GlobalAveragePooling2D GlobalAveragePooling3D GlobalAvgPool1D
    GlobalAvgPool2D GlobalAvgPool3D GlobalMaxPool1D GlobalMaxPool2D GlobalMaxPool3D
    GlobalMaxPooling1D GlobalMaxPooling2D GlobalMaxPooling3D GroupNormalization GroupQueryAttention
    GroupedQueryAttention HashedCrossing Hashing Identity InputLayer IntegerLookup LSTM LSTMCell
    LSTMCellV1 LSTMCellV2 LSTMV1 LSTMV2 LayerNormalization LeakyReLU LocallyConnected1D
    LocallyConnected2D Masking MaxNumBoundingBoxes MaxPool1D MaxPool2D MaxPool3D MaxPooling1D
    MaxPooling2D MaxPooling3D Maximum MelSpectrogram Minimum MixUp MultiHeadAttention Multiply
    Normalization PReLU Permute Pipeline RMSNormalization RNN RandAugment RandomBrightness
    RandomColorDegeneration RandomColorJitter RandomContrast RandomCrop RandomElasticTransform
    RandomErasing RandomFlip RandomGaussianBlur RandomGrayscale RandomHeight RandomHue RandomInvert
    RandomPerspective RandomPosterization RandomRotation RandomSaturation RandomSharpness
    RandomShear RandomTranslation RandomWidth RandomZoom ReLU RepeatVector Rescaling Reshape
    Resizing ReversibleEmbedding STFTSpectrogram SeparableConv1D SeparableConv2D
    SeparableConvolution1D SeparableConvolution2D SimpleRNN SimpleRNNCell Softmax Solarization
    SpatialDropout1D SpatialDropout2D SpatialDropout3D SpectralNormalization StackedRNNCells
    StringLookup Subtract SyncBatchNormalization TextVectorization ThresholdedReLU TimeDistributed
    UnitNormalization UpSampling1D UpSampling2D UpSampling3D Wrapper ZeroPadding1D ZeroPadding2D
    ZeroPadding3D
"""

_OPERATIONS = """
    Abs Absolute AdaptiveAveragePool AdaptiveMaxPool Add AffineTransform All AllClose Amax Amin
    Angle Any Append Arange Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh Argmax Argmin
    Argpartition Argsort Array ArraySplit Average AveragePool BatchNorm BinaryCrossentropy Bincount
    BitwiseAnd BitwiseInvert BitwiseLeftShift BitwiseNot BitwiseOr BitwiseRightShift BitwiseXor
    BroadcastTo CDist CTCDecode CTCLoss Cast CategoricalCrossentropy Cbrt Ceil Celu Cholesky
    CholeskyInverse Clip Concatenate Conj Conjugate Conv ConvTranspose ConvertToTensor Copy Corrcoef
    Correlate Cos Cosh CountNonzero CropImages Cross Cumprod Cumsum Deg2rad DepthToSpace
    DepthwiseConv Det Diag Diagflat Diagonal Diff Digitize Divide DivideNoNan Dot
    DotProductAttention Dsplit Dstack Eig Eigh Einsum ElasticTransform Elu EmptyLike Equal Erf Erfc
    Erfinv Exp Exp2 ExpandDims Expm1 ExtractPatches ExtractSequences FFT FFT2 Fabs Flip Fliplr
    Flipud Floor FloorDivide Fmax Fmin Fmod Fold Full FullLike GaussianBlur Gcd Gelu Geomspace
    GetItem Glu Greater GreaterEqual HSVToRGB HardShrink HardSigmoid HardSilu HardTanh Heaviside
    Histogram Hsplit Hstack Hypot I0 IFFT2 IRFFT ISTFT Imag InTopK Inner Inv IsIn Isclose Isfinite
    Isinf Isnan Isneginf Isposinf Isreal Kron LayerNorm Lcm Ldexp LeakyRelu LeftShift Less
    LessEqual Linspace Log Log10 Log1p Log2 LogSigmoid LogSoftmax Logaddexp Logaddexp2 Logdet
    LogicalAnd LogicalNot LogicalOr LogicalXor Logspace Logsumexp Lstsq LuFactor MapCoordinates
    Matmul MatrixRank Max MaxPool Maximum Mean Median Meshgrid Min Minimum Mod Moments Moveaxis
    MultiHot Multiply NanToNum Nanargmax Nanargmin Nancumprod Nancumsum Nanmax Nanmean Nanmedian
    Nanmin Nanpercentile Nanprod Nanquantile Nanstd Nansum Nanvar Ndim Negative Nextafter Nonzero
    Norm Normalize NotEqual OneHot OnesLike Outer PSNR Pad PadImages Percentile PerspectiveTransform
    Pinv Polar Power Prod Ptp Qr Quantile RFFT RGBToGrayscale RGBToHSV RMSNorm Rad2deg Ravel Real
    Rearrange Reciprocal Relu Relu6 Repeat Reshape Resize RightShift Roll Rot90 Round Rsqrt SSIM
    STFT SVD SaturateCast ScaleAndTranslate Scatter ScatterUpdate SearchSorted SegmentMax SegmentMin
    SegmentProd SegmentSum Select Selu SeparableConv Sigmoid Sign Signbit Silu Sin Sinc Sinh Size
    Slice SliceUpdate Slogdet SobelEdges SoftShrink Softmax Softplus Softsign Solve SolveTriangular
    Sort SpaceToDepth SparseCategoricalCrossentropy SparsePlus SparseSigmoid Sparsemax Split Sqrt
    Square Squareplus Squeeze Stack Std StopGradient Subtract Sum Swapaxes Take TakeAlongAxis Tan
    Tanh TanhShrink Tensordot Threshold Tile TopK Trace Transpose Trapezoid Tril Triu TrueDivide
    Trunc Unfold Unique UnravelIndex Unstack Vander Var Vdot View ViewAsComplex ViewAsReal Vsplit
    Vstack Where ZerosLike
"""

_INITIALIZERS = """
    Constant GlorotNormal GlorotUniform HeNormal HeUniform Identity IdentityInitializer LecunNormal
    LecunUniform Ones Orthogonal OrthogonalInitializer RandomNormal RandomUniform STFT
    STFTInitializer TruncatedNormal VarianceScaling Zeros constant glorot_normal glorot_uniform
    he_normal he_uniform identity lecun_normal lecun_uniform ones orthogonal random_normal
    random_uniform stft truncated_normal variance_scaling zeros
"""

_CONSTRAINTS_AND_REGULARIZERS = """
    L1 L1L2 L2 MaxNorm MinMaxNorm NonNeg OrthogonalRegularizer RadialConstraint UnitNorm l1 l1_l2 l2
    max_norm min_max_norm non_neg orthogonal_regularizer radial_constraint unit_norm
"""

_DTYPE_POLICIES_AND_QUANTIZERS = """
    AWQConfig AWQDTypePolicy AbsMaxQuantizer DTypePolicy DTypePolicyMap Float8QuantizationConfig
    FloatDTypePolicy GPTQConfig GPTQDTypePolicy Int4DTypePolicy Int4QuantizationConfig
    Int8QuantizationConfig Policy QuantizationConfig QuantizedDTypePolicy QuantizedFloat8DTypePolicy
"""

_LOSSES_AND_METRICS = """
    AUC Accuracy BinaryAccuracy BinaryCrossentropy BinaryFocalCrossentropy BinaryIoU CTC
    CategoricalAccuracy CategoricalCrossentropy CategoricalFocalCrossentropy
    CategoricalGeneralizedCrossEntropy CategoricalHinge Circle ConcordanceCorrelation
    CosineSimilarity Dice F1Score FBetaScore FalseNegatives FalsePositives Hinge Huber IoU
    KLDivergence LogCosh LogCoshError Mean MeanAbsoluteError MeanAbsolutePercentageError MeanIoU
    MeanMetricWrapper MeanRelativeError MeanSquaredError MeanSquaredLogarithmicError MeanTensor
    OneHotIoU OneHotMeanIoU PearsonCorrelation Poisson Precision PrecisionAtRecall R2Score Recall
    RecallAtPrecision RootMeanSquaredError SensitivityAtSpecificity SparseCategoricalAccuracy
    SparseCategoricalCrossentropy SparseTopKCategoricalAccuracy SpecificityAtSensitivity
    SquaredHinge Sum TopKCategoricalAccuracy TrueNegatives TruePositives Tversky
"""

_OPTIMIZERS_AND_THEIR_SCHEDULES = """
    Adadelta Adafactor Adagrad Adam AdamW Adamax CosineDecay CosineDecayRestarts ExponentialDecay
    Ftrl InverseTimeDecay Lamb Lion LossScaleOptimizer MultiOptimizer Muon Nadam OptimizerMap
    PiecewiseConstantDecay PolynomialDecay RMSprop SGD ScheduleFreeAdamW
"""

_RANDOM = """
    SeedGenerator
"""

_FUNCTIONS = """
    KLD MAE MAPE MSE MSLE binary_accuracy binary_crossentropy binary_focal_crossentropy
    categorical_accuracy categorical_crossentropy categorical_focal_crossentropy
    categorical_generalized_cross_entropy categorical_hinge celu circle concordance_correlation
    cosine_similarity ctc dice elu exponential gelu glu hard_shrink hard_sigmoid hard_silu
    hard_swish hard_tanh hinge huber kl_divergence kld kullback_leibler_divergence l1_l2 leaky_relu
    linear log_cosh log_sigmoid log_softmax logcosh mae mape mean_absolute_error
    mean_absolute_percentage_error mean_squared_error mean_squared_logarithmic_error mish mse msle
    pearson_correlation poisson relu relu6 selu sigmoid silu soft_shrink softmax softplus softsign
    sparse_categorical_accuracy sparse_categorical_crossentropy sparse_plus sparse_sigmoid
    sparse_top_k_categorical_accuracy sparsemax squared_hinge squareplus swish tanh tanh_shrink
    threshold top_k_categorical_accuracy tversky
"""

_REFUSED = """
    AssociativeScan BaseRandomLayer BatchNormalizationBase ClassMethod Cond Constraint DenseFeatures
    DeviceWrapper DropoutWrapper FlaxLayer ForiLoop Function IndexLookup Initializer Input InputSpec
    InstanceMethod InstanceProperty JVP JaxLayer Lambda Layer LearningRateSchedule LinearModel Loss
    Map Metric Operation Optimizer Quantizer Reduction Regularizer ResidualWrapper Scan
    SegmentReduction SequenceFeatures Switch TFSMLayer TensorFlowOpLayer TorchModuleWrapper
    VectorizedMap WhileLoop WideDeepModel
"""

_WITH_POLICIES = f"{_DTYPE_POLICIES_AND_QUANTIZERS} {_OPTIMIZERS_AND_THEIR_SCHEDULES}"
_TENSORFLOW_CALLS = "SlicingOpLambda TFOpLambda"

KNOWN = {
    part: frozenset(names.split())
    for part, names in {
        "": f"{_MODELS} {_DTYPE_POLICIES_AND_QUANTIZERS}",
        "activations": _OPERATIONS,  # a few of them stand there
        "constraints": _CONSTRAINTS_AND_REGULARIZERS,
        "dtype_policies": _DTYPE_POLICIES_AND_QUANTIZERS,
        "engine": f"{_MODELS} InputLayer",
        "initializers": _INITIALIZERS,
        "layers": f"{_LAYERS} {_TENSORFLOW_CALLS}",
        "losses": _LOSSES_AND_METRICS,
        "metrics": _LOSSES_AND_METRICS,
        "mixed_precision": _WITH_POLICIES,
        "models": _MODELS,
        "ops": _OPERATIONS,
        "optimizers": _OPTIMIZERS_AND_THEIR_SCHEDULES,
        "quantizers": _DTYPE_POLICIES_AND_QUANTIZERS,
        "random": _RANDOM,
        "regularizers": _CONSTRAINTS_AND_REGULARIZERS,
    }.items()
}
"""The classes of each part of Keras; "" is `keras` itself. What of a module's name says no more
than how Keras was packed (`src`, `legacy`) does not count: `keras.src.layers.core.dense` is of
"layers". So the pairs hold for every version."""

OPERATIONS = KNOWN["ops"]
"""Classes of keras.ops, which only there are what they are called."""

CLASSES = frozenset[str]().union(
    *(names for part, names in KNOWN.items() if part not in ("activations", "ops"))
)
"""All others: those that a legacy file can name, which does so without a module."""

REFUSED = frozenset(_REFUSED.split())
"""What Keras has by these names runs code, reads files, takes functions, or is nothing alone."""

FUNCTIONS = frozenset(_FUNCTIONS.split())
"""Functions that a config names as objects: activations, initializers, losses, metrics."""
