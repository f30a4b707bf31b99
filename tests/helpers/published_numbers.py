"""Values that the authors' public code gives in one small float64 setting, and functions that build this setting.

Values and facts only; nothing here is the authors' code. It was run as published, with torch 2.15 on a CPU, except
that data, network and random draws are those below, that CUDA calls and logs do nothing, and that ATAS's crops are in
float64 instead of float32. Run again with all weights changed by 1e-11 of themselves, no number moved by more than
1e-12 + 1e-10 of itself.

Setting. network(), batch() and the noise below are closed formulas. eps = 8/255, attack step 2/255, 3 attack steps; SGD
with learning rate 0.1, momentum 0.9, weight decay 5e-4. Every normal draw gives normal_noise(shape) and every uniform
draw uniform_noise(shape, low, high), however often and whatever for. T and E are the network's training and evaluation
mode; CE is the mean cross-entropy; KL(p || q) is a sum over classes.

Fingerprints. A pair is fingerprint(tensor); lists of 8 (and of 3) hold weighted(tensor) for all parameters in order
(for the convolutions and the linear weight). "gradients" are those of the loss, without weight decay. "weights" are
those after the optimiser's step; "running_mean", "running_var" and "batches" (num_batches_tracked) are those of the
first batch norm after the step.

TRADES, yaodongyu/TRADES 6e8e11b, trades_loss, beta 6. x' = x + 0.001 normal noise, not clipped; 3 times in E: x' <- x'
+ step sign of the gradient of sum_i KL(p(x_i) || p(x'_i)), clipped to the ball and to [0, 1]. In T, forwards of x, x',
x in this order (so 3 batches): loss = CE(f(x)) + beta mean_i KL(p(x_i) || p(x'_i)), backward, SGD step. TRADES_STEP_4:
the same with an attack step of 4/255, with which the ball's surface is reached.

MART, YisenWang/MART 2d83e17, mart_loss, beta 6 (MART) and 5 (MART_BETA_5). Start as in TRADES; 3 steps on CE in E. In
T, forwards of x, then x': loss = CE(f(x')) - mean_i log(1.0001 - q_i + 1e-12) + beta mean_i KL(p(x_i) || p(x'_i) +
1e-12) (1.0000001 - p(x_i)_y), with q_i the largest probability of a wrong class on x'. Backward, SGD step. MART_STEP_4:
beta 6, attack step 4/255.

AT_AWP, csdongxian/AWP a7acf5d, main() of AT_AWP/train_cifar10.py, first batch of epoch 0, gamma 0.01, no normalisation.
delta = uniform noise in (-eps, eps), clipped so that x + delta is in [0, 1]; all in T: 3 steps on CE, then one more
forward at the last point, which chooses among restarts (there is one). "after_attack": statistics here, 4 batches. The
proxy, a second network, takes over the state in T, and one plain SGD step with rate 0.01 on -CE(f(x')) whose gradients
are "proxy_gradients"; "direction" = ||w|| / ||w~ - w|| (w~ - w) for tensors of two and more dimensions. Model: w +=
gamma direction; forward of x' in T, loss = CE, backward, SGD step ("stepped": the weights now, still perturbed); w -=
gamma direction ("weights"). One last forward of x in T, for the log only: "after_clean_forward".

TRADES_AWP, same repository, train() of trades_AWP/train_trades_cifar.py, beta 6, gamma 0.005. Attack in E as in TRADES.
The proxy's loss is minus that of TRADES (its rate 0.1); direction, perturbation, step and restoration as in AT_AWP. The
outer forwards in T are those of x', x, x.

ATAS, HuangZhiChao95/ATAS 674b195, train() of ATAS.py, 4 images of 32 x 32, all in one batch, three batches in a row:
of epoch 5 (warm-up), 6 and 6. The images are padded by 4 with zeros; the buffer, perturbations of 40 x 40, begins as
uniform noise in (-eps, eps); v begins as 0. crops(4, first) with first = 0, 4 and 8 cut both. "x": the crops of the
images; "start" = x + crops of the buffer, clipped to [0, 1]. In E, g is the gradient of the mean CE at start; epoch 5:
"step_sizes" = eps, v is left alone; epoch 6: v <- v / 2 + ||g_i||^2 / 2, step size 16/255 / (1 + sqrt(v) / c), clipped
to 4/255 .. 14/255, with c = 0.01; as g is that of the mean of 4, c = 0.04 gives the same with gradients per example and
a v 16 times as large. "x_adv" = start + step size sign g, clipped to the ball and to [0, 1]. In T, CE of it, backward,
SGD step; then x_adv - x, flipped back, goes to its window of the "delta". ATAS_C_0003: the same with c = 0.003, where
the smallest step size is met.

ATTA, hzzheng93/ATTA 2c987de, main() of train_atta_cifar.py, two epochs of one batch of the same 4 images. They are
padded by 4 with 0.5; the buffer, images of 40 x 40, begins as that + 0.001 normal noise, nowhere clipped. crops(4,
first) with first = 0 and 4. "start" = crops of the buffer, as they are; 3 steps in E on CE from it, each clipped to the
ball and to [0, 1]; in T, loss = CE(f(x')) / 4 ("mat": the mean is divided by the batch size once more), backward, SGD
step with weight decay 5e-4; x', flipped back, goes to its window. ATTA_TRADES: the same attack, loss of TRADES with
beta 6 undivided, and forwards of x, then x', in T.

ENTROPY_SGD, ucla-vision/entropy-sgd 61329f9, EntropySGD of python/optim.py: lr 0.1, momentum 0.9, Nesterov, weight
decay 5e-4, L = 5, noise 1e-4, gamma 0.03 constant, inner rate 0.1, averaging 0.75; 3 outer steps of 6 closures each, of
which the first opens the step: its loss is "loss". Closure number t of all 18, from 0: CE in T on batch(phase=t % 4),
backward. In every inner step 1e-4 sqrt(2 * 0.1) normal_noise(p.shape) is subtracted from each parameter p: it is part
of the descent direction. "weights" are those after the outer step. Batch-norm statistics follow all forwards.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

EPS, STEP, STEPS = 8 / 255, 2 / 255, 3


def network() -> nn.Module:
    """A float64 network in training mode: two convolutions with batch norm, mean over positions, a linear layer."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 10),
    ).double()
    with torch.no_grad():
        for k, (name, p) in enumerate(model.named_parameters()):
            j = _count(p.shape)
            if p.dim() > 1:
                p.copy_(0.5 * torch.sin(1.3 * j + k + 1))
            elif name.endswith("weight"):
                p.copy_(1 + 0.1 * torch.sin(j + k))
            else:
                p.copy_(0.1 * torch.cos(j + k))
        for norm in (model[1], model[4]):
            j = _count(norm.running_mean.shape)
            norm.running_mean.copy_(0.05 * torch.sin(j))
            norm.running_var.copy_(1 + 0.2 * torch.cos(j) ** 2)
    return model


def batch(n: int = 8, side: int = 8, phase: float = 0.0) -> tuple[Tensor, Tensor]:
    """Images (n, 3, side, side) and labels (n,)."""
    j = _count((n, 3, side, side))  # up to 12287: the order of operations decides on the last digits of the sine
    return 0.5 + 0.5 * torch.sin(0.7 * (j * j) + 0.3 * j + phase), (3 * torch.arange(n) + 1) % 10


def normal_noise(shape: Sequence[int]) -> Tensor:
    """Values in place of draws from the standard normal distribution."""
    return torch.sin(2.1 * _count(shape) + 0.4)


def uniform_noise(shape: Sequence[int], low: float, high: float) -> Tensor:
    """Values in place of uniform draws."""
    return low + (high - low) * (0.5 + 0.5 * torch.sin(1.7 * _count(shape) + 0.2))


def crops(n: int, first: int = 0) -> list[tuple[int, int, bool]]:
    """Row offset, column offset and flip of n examples; a crop is cut out first, then flipped left to right."""
    return [((3 * i) % 9, (5 * i) % 9, i % 2 == 1) for i in range(first, first + n)]


def weighted(t: Tensor) -> float:
    """Sum of the elements, element j times cos(j)."""
    return (t.detach() * torch.cos(_count(t.shape))).sum().item()


def fingerprint(t: Tensor) -> tuple[float, float]:
    """Sum of the elements, and `weighted`."""
    return t.detach().sum().item(), weighted(t)


def _count(shape: Sequence[int]) -> Tensor:
    """0, 1, 2, ... in float64."""
    return torch.arange(math.prod(shape), dtype=torch.float64).view(*shape)


# fmt: off
# Of the setting itself: wrong here means wrong everywhere. Losses: CE in evaluation and in training mode.
SETTING = {
    "x": (768.792396067, -0.37400415257),
    "x_32": (6160.66121674, 51.1912784469),
    "normal": (0.519372350648, 0.365709791771),
    "uniform": (0.0373667982352, 0.00206353014414),
    "weights": [
        1.04181469926, 0.336489835528, -0.0959853775379, -1.37834730137,
        -0.469701532276, 0.099029592864, -0.0812127887971, 0.407908045696,
    ],
    "eval_loss": 2.35878806937,
    "train_loss": 2.36819842233,
}

TRADES = {
    "x_adv": (768.687753516, -0.135221517026),
    "loss": 2.37153497292,
    "gradients": [
        0.122999077998, -0.0161762658304, -0.0173252992973, 0.253140175406,
        0.129833814049, 0.192191216291, 0.0536154777147, 0.043469329057,
    ],
    "weights": [
        1.02946270072, 0.33809063762, -0.0942480483393, -1.40359240155,
        -0.482661428604, 0.0798055197553, -0.0865702759291, 0.403540717388,
    ],
    "running_mean": [0.0528271457213, 0.00475177541854, 0.0247138355314, 0.0455031810367],
    "running_var": [0.980758522152, 0.881653731834, 0.861622036107, 0.972598265722],
    "batches": 3,
}

TRADES_STEP_4 = {
    "x_adv": (768.964047312, -0.0780013460669),
    "loss": 2.37396502753,
    "gradients": [
        0.131838390221, -0.0141961113739, -0.0208689052346, 0.252294176846,
        0.131616880243, 0.191460984316, 0.0534420029404, 0.0435965962368,
    ],
}

MART = {
    "x_adv": (770.060862818, 0.0401678078974),
    "loss": 2.5608960361,
    "gradients": [
        -0.0183948453125, -0.00651105572567, 0.00877314901911, 0.0975462203885,
        0.187757983866, 0.238942537035, 0.0532720951909, 0.111669536339,
    ],
    "weights": [
        1.04360209305, 0.337124116609, -0.0968578931709, -1.38803300604,
        -0.488453845586, 0.0751303876809, -0.0865359376767, 0.396720696659,
    ],
    "running_mean": [0.0370821181718, 0.0158888071866, 0.0309026866878, 0.0340528760656],
    "running_var": [1.04711515364, 0.935408681206, 0.914241818678, 1.04015726191],
    "batches": 2,
}

MART_BETA_5 = {
    "x_adv": (770.060862818, 0.0401678078974),
    "loss": 2.56022422464,
    "gradients": [
        -0.0146458970396, -0.00637413366554, 0.00846036206355, 0.100539102502,
        0.187427153075, 0.239080605987, 0.0532363599279, 0.111671068956,
    ],
}

MART_STEP_4 = {
    "x_adv": (770.320449597, 0.188767006397),
    "loss": 2.57331129196,
    "gradients": [
        0.0760682525249, 0.0228937827473, -0.00764253840812, 0.196573142703,
        0.202543830205, 0.223414506708, 0.0546451887687, 0.111808574933,
    ],
}

AT_AWP = {
    "x_adv": (768.970022396, -0.135479617387),
    "after_attack": {
        "running_mean": [0.066876638968, -0.00519759390097, 0.019138219076, 0.0557441746145],
        "running_var": [0.919954438043, 0.832508582163, 0.81370501794, 0.911111366342],
        "batches": 4,
    },
    "proxy_gradients": [
        0.0360276833858, 0.0168203281496, 0.00423014433799, -0.095400750903,
        -0.137180016744, -0.195889092539, -0.0686240454915, -0.0435911969812,
    ],
    "direction": [-0.964482152226, 2.55828862808, 0.912734783967],
    "loss": 2.44809964167,
    "gradients": [
        -0.081801030226, -0.0298683024202, -0.00829707895528, 0.128600404738,
        0.138783022855, 0.187539678786, 0.0746424369885, 0.0443956874377,
    ],
    "stepped": [
        1.04029837226, 0.339459841279, -0.0951508703735, -1.36555681734,
        -0.483556349485, 0.0802706735058, -0.0795460803842, 0.40344808155,
    ],
    "weights": [
        1.04994319379, 0.339459841279, -0.0951508703735, -1.39113970362,
        -0.483556349485, 0.0802706735058, -0.0886734282239, 0.40344808155,
    ],
    "running_mean": [0.0790922017028, -0.0154830521184, 0.0147678707586, 0.0663342910093],
    "running_var": [0.866532726947, 0.789549172396, 0.771558452107, 0.8568975092],
    "batches": 5,
    "after_clean_forward": {
        "running_mean": [0.0909704042814, -0.0233658163081, 0.0100862727587, 0.0742802150456],
        "running_var": [0.818763163324, 0.750982434957, 0.733758555795, 0.808091501235],
        "batches": 6,
    },
}

TRADES_AWP = {
    "x_adv": (768.687753516, -0.135221517026),
    "proxy_gradients": [
        -0.122999077998, 0.0161762658304, 0.0173252992973, -0.253140175406,
        -0.129833814049, -0.192191216291, -0.0536154777147, -0.043469329057,
    ],
    "direction": [3.44119780478, 7.68150467794, 0.739059623648],
    "loss": 2.38125293114,
    "gradients": [
        0.103483105411, -0.0237718272977, -0.0163784071642, 0.292963954338,
        0.131421366769, 0.19090747946, 0.0568595821924, 0.0439113974422,
    ],
    "stepped": [
        1.0486194267, 0.338850193766, -0.0943427375526, -1.36916917643,
        -0.482820183876, 0.0799338934384, -0.0831995730236, 0.403496510549,
    ],
    "weights": [
        1.03141343768, 0.338850193766, -0.0943427375526, -1.40757669982,
        -0.482820183876, 0.0799338934384, -0.0868948711418, 0.403496510549,
    ],
    "running_mean": [0.0519884639157, 0.00227382496057, 0.0254161806776, 0.0469763133596],
    "running_var": [0.98080471839, 0.881653122702, 0.861406394922, 0.972721358985],
    "batches": 3,
}

ATAS = [
    {
        "epoch": 5,
        "x": (5181.72179807, 59.374284788),
        "start": (5200.54197512, 59.6878268344),
        "x_adv": (5208.86175751, 58.1628131136),
        "v": [0.0, 0.0, 0.0, 0.0],
        "step_sizes": [0.0313725490196, 0.0313725490196, 0.0313725490196, 0.0313725490196],
        "loss": 2.30229127245,
        "gradients": [
            -0.0716197844462, 0.0121623568437, 0.0132536139867, 0.300849107527,
            -0.0816155240503, -0.132167644671, 0.0866088154055, -0.330623722357,
        ],
        "weights": [
            1.04892458697, 0.335256775352, -0.0973059396677, -1.40836329476,
            -0.461516494794, 0.112241405851, -0.0898696096982, 0.440950022529,
        ],
        "delta": (27.2711050331, -0.00545833046129),
        "running_mean": [0.024737120919, 0.0267521776359, 0.035218030555, 0.0272283312907],
        "running_var": [1.1189288176, 0.992151744463, 0.970945852993, 1.11567062156],
        "batches": 1,
    },
    {
        "epoch": 6,
        "x": (5317.67534352, 28.2375766567),
        "start": (5335.93760787, 28.9683109947),
        "x_adv": (5341.82649856, 31.0575252312),
        "v": [5.5719846112e-05, 5.38361946305e-05, 0.000136591715294, 6.00623488928e-05],
        "step_sizes": [0.035927073048, 0.0361907811243, 0.0289317963682, 0.035349370423],
        "loss": 2.26406660464,
        "gradients": [
            -0.0218159471338, 0.0327501583008, 0.0310211013087, 0.229510543515,
            -0.0865416827932, -0.113254890351, 0.0742931721493, -0.325123824951,
        ],
        "weights": [
            1.05745263439, 0.330855242525, -0.101591690418, -1.45825832499,
            -0.445472716957, 0.135451914505, -0.105085572244, 0.503178136673,
        ],
        "delta": (42.9136057302, 0.86090192034),
        "running_mean": [0.0476041255139, 0.0128423017405, 0.0255357070288, 0.0461582509309],
        "running_var": [1.04532745601, 0.932106949052, 0.913211335646, 1.04275483245],
        "batches": 2,
    },
    {
        "epoch": 6,
        "x": (5361.38908585, -22.4134496959),
        "start": (5375.88204579, -22.7120693257),
        "x_adv": (5382.90370051, -22.3176249293),
        "v": [0.000103108335939, 8.64230091346e-05, 0.000184930681951, 8.93656794131e-05],
        "step_sizes": [0.0311324748454, 0.0325164827137, 0.0265881203411, 0.0322541480436],
        "loss": 2.2151113714,
        "gradients": [
            0.0447535379878, 0.00792390185691, -0.0030121512835, -0.0173127974523,
            -0.0534501977284, -0.104539511418, 0.0765016725025, -0.315234296614,
        ],
        "weights": [
            1.06059965064, 0.326084930032, -0.105142571381, -1.50135965954,
            -0.425666023494, 0.166788550839, -0.126424851506, 0.590681710157,
        ],
        "delta": (63.6848807219, -2.98922635123),
        "running_mean": [0.0693528877423, -0.00114553550591, 0.0185241409873, 0.061573342462],
        "running_var": [0.979856984232, 0.8786454651, 0.86197206885, 0.978149204838],
        "batches": 3,
    },
]

ATAS_C_0003 = [
    {
        "epoch": 5,
        "x_adv": (5208.86175751, 58.1628131136),
        "v": [0.0, 0.0, 0.0, 0.0],
        "step_sizes": [0.0313725490196, 0.0313725490196, 0.0313725490196, 0.0313725490196],
        "loss": 2.30229127245,
        "delta": (27.2711050331, -0.00545833046129),
    },
    {
        "epoch": 6,
        "x_adv": (5338.97957893, 30.2786214361),
        "v": [5.5719846112e-05, 5.38361946305e-05, 0.000136591715294, 6.00623488928e-05],
        "step_sizes": [0.0179878623704, 0.0182093019435, 0.0156862745098, 0.0175102757975],
        "loss": 2.25464498037,
        "delta": (40.0666860984, 0.519818202631),
    },
    {
        "epoch": 6,
        "x_adv": (5378.66777715, -21.777921711),
        "v": [9.74530818908e-05, 9.12170119263e-05, 0.000179315880741, 9.3151399853e-05],
        "step_sizes": [0.0156862745098, 0.0156862745098, 0.0156862745098, 0.0156862745098],
        "loss": 2.20621546184,
        "delta": (56.5881908031, -1.16167123173),
    },
]

ATTA = [
    {
        "x": (6143.22179807, 55.1364787603),
        "start": (6143.22395923, 55.1367990237),
        "store_before": (9616.66110566, 8.05615504129),
        "x_adv": (6140.65401239, 56.1739669641),
        "loss": 0.578080799218,
        "gradients": [
            -0.0194259509908, 0.00541889904152, 0.00277701945042, 0.074989404664,
            -0.021065034385, -0.0328335894713, 0.022835517936, -0.0825851452293,
        ],
        "weights": [
            1.04370520362, 0.335931121132, -0.096258280214, -1.38577732447,
            -0.467571543761, 0.102308000332, -0.0834922799513, 0.416146164816,
        ],
        "delta": (9614.09115882, 8.23372046333),
        "running_mean": [0.0287042989657, 0.0238681770178, 0.0361907450909, 0.0284462069812],
        "running_var": [1.1179210916, 0.991292731715, 0.970055305196, 1.11460191014],
        "batches": 1,
    },
    {
        "x": (6157.67534352, 14.0891760089),
        "start": (6157.36035133, 13.3384084743),
        "store_before": (9614.09115882, 8.23372046333),
        "x_adv": (6156.86128543, 15.4573095104),
        "loss": 0.572349582839,
        "gradients": [
            -0.00659407969038, 0.00566439308708, 0.00105898453573, 0.056739647181,
            -0.0207202824796, -0.0297330589639, 0.0211776988291, -0.082211863958,
        ],
        "weights": [
            1.04601388026, 0.334845042311, -0.0966049781622, -1.39806902111,
            -0.463559147272, 0.108226757549, -0.0876574172589, 0.431760851112,
        ],
        "delta": (9613.59209292, 9.25545164667),
        "running_mean": [0.0544947364314, 0.00756493562801, 0.0277127081578, 0.0478857683773],
        "running_var": [1.04350544481, 0.930336317348, 0.911350875556, 1.04076498101],
        "batches": 2,
    },
]

ATTA_TRADES = [
    {
        "x": (6143.22179807, 55.1364787603),
        "start": (6143.22395923, 55.1367990237),
        "store_before": (9616.66110566, 8.05615504129),
        "x_adv": (6140.65401239, 56.1739669641),
        "loss": 2.26971648675,
        "gradients": [
            -0.0417441287298, 0.00489905521142, 0.0108402222342, 0.19972967189,
            -0.0976078270662, -0.1285917668, 0.0577305791787, -0.330826520569,
        ],
        "weights": [
            1.04593702139, 0.335983105515, -0.0970646004924, -1.39825135119,
            -0.459917264493, 0.111883818064, -0.0869817860755, 0.44097030235,
        ],
        "delta": (9614.09115882, 8.23372046333),
        "running_mean": [0.0545185010894, 0.00749942362125, 0.0278361528571, 0.0476948062603],
        "running_var": [1.04460237258, 0.931472679743, 0.912498412323, 1.04188472579],
        "batches": 2,
    },
    {
        "x": (6157.67534352, 14.0891760089),
        "start": (6157.36035133, 13.3384084743),
        "store_before": (9614.09115882, 8.23372046333),
        "x_adv": (6157.00531921, 16.1866710279),
        "loss": 2.22987370852,
        "gradients": [
            -0.00255689161183, 0.0126182037338, 0.00220410188251, 0.12825140698,
            -0.0916192347663, -0.116308300035, 0.0539609887906, -0.325380303578,
        ],
        "weights": [
            1.04985050363, 0.334248428975, -0.0982514581097, -1.42892022417,
            -0.441926504148, 0.135077856557, -0.0975656334159, 0.503242315182,
        ],
        "delta": (9613.7361267, 9.00554493492),
        "running_mean": [0.0987763649089, -0.0203707620572, 0.0134140044327, 0.0809795695677],
        "running_var": [0.917809599011, 0.827741646678, 0.812694663406, 0.916228456465],
        "batches": 4,
    },
]

ENTROPY_SGD = [
    {
        "loss": 2.36819842233,
        "weights": [
            1.02678703053, 0.341206733423, -0.0931429073301, -1.42755429982,
            -0.49813812842, 0.0615249783829, -0.0919823436026, 0.397660667456,
        ],
        "running_mean": [0.096204618503, -0.0349869761181, 0.0186253261292, 0.0622573477351],
        "running_var": [0.83442506112, 0.766745639506, 0.749337769278, 0.824916703592],
        "batches": 6,
    },
    {
        "loss": 2.29990383896,
        "weights": [
            1.00963582723, 0.346230766496, -0.0887139315487, -1.48396595669,
            -0.531895676731, 0.0179316252189, -0.104242196293, 0.3851874432,
        ],
        "running_mean": [0.145540397448, -0.0625033279265, -0.00121962078804, 0.0906558928157],
        "running_var": [0.646251990289, 0.619101930754, 0.60723224572, 0.63609451449],
        "batches": 12,
    },
    {
        "loss": 2.31319601011,
        "weights": [
            0.992137495927, 0.353712579315, -0.0843360924605, -1.54729531749,
            -0.569818862675, -0.0299520468942, -0.1192568429, 0.370739126172,
        ],
        "running_mean": [0.179629484445, -0.0914551962087, -0.000799274988289, 0.100224757495],
        "running_var": [0.539447443717, 0.532980849431, 0.521579483066, 0.52709646985],
        "batches": 18,
    },
]
