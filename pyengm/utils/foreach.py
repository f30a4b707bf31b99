"""torch's operations on lists of tensors, which torch uses itself but lists in none of its public modules."""

import torch

# torch's stubs declare these, and do not export them: pyright's rule is about that alone.
add_ = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
clamp_min_ = torch._foreach_clamp_min_  # pyright: ignore[reportPrivateImportUsage]
copy_ = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]
div = torch._foreach_div  # pyright: ignore[reportPrivateImportUsage]
lerp_ = torch._foreach_lerp_  # pyright: ignore[reportPrivateImportUsage]
mul = torch._foreach_mul  # pyright: ignore[reportPrivateImportUsage]
mul_ = torch._foreach_mul_  # pyright: ignore[reportPrivateImportUsage]
neg = torch._foreach_neg  # pyright: ignore[reportPrivateImportUsage]
norm = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage]
sub = torch._foreach_sub  # pyright: ignore[reportPrivateImportUsage]
sub_ = torch._foreach_sub_  # pyright: ignore[reportPrivateImportUsage]
