"""What pyproject.toml cannot say: a wheel carries the configs inside the package; their one source is ./configs."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConfigs(build_py):
    """Copies ./configs to tinytf/configs in what is built. An editable install reads ./configs itself."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            inside = Path(self.build_lib, "tinytf", "configs")
            # The build folder may be an old one, with a config that is gone.
            shutil.rmtree(inside, ignore_errors=True)
            shutil.copytree("configs", inside)


setup(cmdclass={"build_py": WithConfigs})
